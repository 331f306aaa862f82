"""The kinds of files that fuzzing damages."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densefeat.evaluation.class_order import read_classes
from densefeat.probing.probe_file import FILE
from support.fuzz_images import cut_tiles, decode_file, write_images
from support.fuzz_inputs import (
    read_both_splits,
    read_either_recipe,
    use_input,
    use_labels,
    write_cifar,
    write_class_files,
    write_label_files,
    write_lists,
    write_recipes,
    write_svhn,
    write_tables,
    write_tars,
)
from support.fuzz_networks import (
    is_resumable,
    read_probe,
    read_trained,
    resume_run,
    use_probe,
    use_run,
    use_weights,
    write_probes,
    write_resumed_run,
    write_runs,
    write_runs_and_recipes,
    write_weights,
)
from support.fuzz_pages import read_pages, write_files_of_pages
from support.fuzz_stores import (
    extract_again,
    is_part,
    probe_again,
    read_failures_too,
    read_rows,
    use_store,
    use_unchecked_store,
    without_checksums,
    write_extracted,
    write_fitted,
    write_store_file,
    write_store_folder,
    write_unfinished_store,
)


@dataclass(frozen=True)
class Kind:
    """``write`` makes good files in an empty folder; ``read`` takes a copy of it and the damaged file, and does what commands do.

    ``agree``: whether what was read of the damaged file is right, given what is read of the good one; None: damage of these
    files cannot be noticed, as a stranger wrote them. ``files``: a glob of those to damage. ``cost``: how many times as long a
    case takes as one of the quick kinds.
    """

    write: Callable[[Path], object]
    read: Callable[[Path, Path], Any]
    agree: Callable[[Any, Any], bool] | None = None
    files: str = "**/*"
    cost: int = 1


KINDS: dict[str, Kind] = {
    "store": Kind(write_store_folder, read_failures_too, operator.eq, "store/**/[!.]*"),
    "unfinished-store": Kind(write_unfinished_store, read_rows, is_part),
    "store-file": Kind(write_store_file, read_rows, operator.eq),
    "unchecked-store": Kind(without_checksums(write_store_folder), use_unchecked_store, cost=4),
    "unchecked-unfinished-store": Kind(without_checksums(write_unfinished_store), use_unchecked_store, cost=4),
    "unchecked-store-file": Kind(without_checksums(write_store_file), use_store, cost=4),
    "extended-store": Kind(write_extracted, extract_again, operator.eq, "store/**/[!.]*", cost=10),
    "fitted-probe": Kind(write_fitted, probe_again, operator.eq, "out/*.[js]*", cost=25),
    "probe": Kind(write_probes, read_probe, operator.eq, f"*/{FILE}"),
    "unchecked-probe": Kind(without_checksums(write_probes), use_probe, files=f"*/{FILE}"),
    "run": Kind(write_runs, read_trained, operator.eq, cost=2),
    "unchecked-run": Kind(without_checksums(write_runs_and_recipes), use_run, cost=10),
    "resumed-run": Kind(write_resumed_run, resume_run, is_resumable),
    "weights": Kind(write_weights, use_weights, cost=4),
    "list": Kind(write_lists, use_input, files="list.*"),
    "labels": Kind(write_label_files, use_labels, files="labels.*"),
    "tar": Kind(write_tars, use_input, files="*.tar"),
    "table": Kind(write_tables, use_input),
    "classes": Kind(write_class_files, lambda _, file: read_classes(file)),
    "cifar": Kind(write_cifar, read_both_splits),
    "svhn": Kind(write_svhn, read_both_splits),
    "recipe": Kind(write_recipes, read_either_recipe),
    "image": Kind(write_images, decode_file),
    "tiles": Kind(write_images, cut_tiles),
    "pages": Kind(write_files_of_pages, read_pages, cost=2),
}
