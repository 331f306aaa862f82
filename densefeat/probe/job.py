"""The probe job: a store and labels to what its blocks are good for, and a fitted head."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densefeat.base import output_errors, progress_bar
from densefeat.errors import UsageError
from densefeat.extraction import extract
from densefeat.images import DELIMITERS
from densefeat.labels import LABEL, TEST, VAL, LabelFile
from densefeat.probe.candidates import BlockFitter, count_settings, fit_candidates, fit_few_shots, select_candidate
from densefeat.probe.data import load_data
from densefeat.probe.protocols import describe_protocol
from densefeat.probe.request import ProbeRequest, make_request
from densefeat.probe.results import (
    FEATURES,
    TEST_FEATURES,
    check_folder,
    read_finished,
    write_report,
)
from densefeat.store import Layout, Store, is_embeddings, open_store


@dataclass(frozen=True)
class Probed:
    """``results``: what ``results.json`` in ``path`` has; ``done_before``: the same probe was there already."""

    path: Path
    results: dict[str, Any]
    done_before: bool = False


def probe(
    store: str | Path | Store,
    out: str | Path,
    *,
    test: str | Path | Store | None = None,
    protocol: str | None = None,
    standardize: bool = False,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
    seed: int = 0,
    images: str | None = None,
) -> Probed:
    """Fit and choose heads on the features of every block, alone and together; report to a folder, with the best head.

    Args:
        store: Of ``densefeat extract``; its vector columns are the candidates.
        out: The folder. What the same call has left there is not made again.
        test: Another store, of the test rows alone, made in the same way; None: 20 % of the rows, stratified.
        protocol: ``"logreg"``, ``"knn"`` or ``"ridge"``; see :mod:`densefeat.probe.protocols`. None: logreg, for numbers ridge.
        standardize: Of logreg: features by their mean and deviation over the training rows (ridge always does so).
        labels: A CSV with ``path`` and ``label``; None: the store's own column.
        label_column: Other than ``label``, of the CSV or the store.
        task: ``"single"``, ``"multi"`` (``a|b``), ``"regression"``, or ``"auto"``: by the labels.
        split_column, group_column: Of the CSV or the store: ``train``, ``val`` (may be missing) and ``test``; what is not to be
            split, such as patients. Rows of one path are never split.
        seed: Of the split, the intervals, and the few-shot draws.
        images: Where the images are, for the report; None: where the store's job found them.

    Raises:
        UsageError: Labels, splits or stores that do not serve, ``out`` holds something else. OutputError: it cannot be written.
    """
    out = Path(out)
    stores = [known if isinstance(known, Store) else open_store(known) for known in (store, test) if known is not None]
    found = load_data(stores, labels, label_column, task, split_column, group_column, seed)
    targets, columns = found.labelled.targets, found.columns
    protocol = protocol or ("ridge" if targets.task == "regression" else "logreg")
    if standardize and protocol != "logreg":
        raise UsageError(f"--standardize is for logreg: {protocol} {'always' if protocol == 'ridge' else 'never'} does so")
    chosen = describe_protocol(protocol, targets.task) | ({"standardize": standardize} if protocol == "logreg" else {})
    asked = make_request(found, chosen, seed, images)
    if (before := read_finished(out, asked)) is not None:
        return Probed(out, before, done_before=True)
    _check_writable(out)
    with progress_bar("fitting", count_settings(protocol, len(columns.widths)), "settings") as advance:
        fits = BlockFitter(protocol, columns, targets, found.labelled.rows, found.parts, seed, advance, standardize)
        return Probed(out, _run(fits, asked, out))


def _run(fits: BlockFitter, asked: ProbeRequest, out: Path) -> dict[str, Any]:
    targets, parts = fits.targets, fits.parts
    concluded = select_candidate(fit_candidates(fits), targets.take(parts == VAL), targets.take(parts == TEST), fits.seed)
    if fits.protocol == "ridge" and targets.task == "single":
        asked = replace(asked, few_shot=fit_few_shots(fits))
    return write_report(out, concluded, asked)


def _check_writable(out: Path) -> None:
    """OutputError now, not after the work, where a folder cannot be made or written to."""
    with output_errors(out):
        there = next(place for place in (out, *out.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def extract_images(
    images: str | Path, test: str | Path | None, out: Path, label_file: str | Path | None = None, **settings: Any
) -> list[Path]:
    """Where the stores of the images and the test images are, made now as far as they are not there.

    ``test`` may be a store. ``label_file``: what will be needed. ``settings``: of :func:`densefeat.extract`. Raises
    what that does, UsageError where ``out`` holds something else than a probe, OutputError where it cannot be made.
    """
    check_folder(out)
    if label_file not in (None, "folder"):
        LabelFile(Path(label_file))  # before what may take hours
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    extract(images, out / FEATURES, **settings)
    if test is None:
        return [out / FEATURES]
    if _is_store(test):
        return [out / FEATURES, Path(test)]
    extract(test, out / TEST_FEATURES, **settings)
    return [out / FEATURES, out / TEST_FEATURES]


def source_options(images: str | Path, labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """How to open the images, with the labels that are theirs."""
    if labels == "folder" or (labels is None and label_column is None and os.path.isdir(images)):
        return {"labels": "folder"}
    if labels is None and label_column is None and str(images).lower().endswith(tuple(DELIMITERS)):
        label_column = LABEL  # of a list it is its own
    return {"label_column": label_column} if labels is None and label_column else {}


def label_options(labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """How to find labels once the images are in stores: a file's, or the stores' own."""
    return {} if labels in (None, "folder") else {"labels": labels, "label_column": label_column}


def _is_store(path: str | Path) -> bool:
    return Layout(Path(path)).manifest.exists() or (os.path.isfile(path) and is_embeddings(Path(path)))
