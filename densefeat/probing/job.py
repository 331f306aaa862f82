"""The job of ``densefeat probe``: from a store and labels to heads on every block, and the report on them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densefeat.base import output_errors, progress_bar
from densefeat.errors import UsageError
from densefeat.extraction import extract
from densefeat.images import DELIMITERS, TAR_LABEL, ChannelStats, Preprocessing, is_image_folder, open_source
from densefeat.labels import LABEL, TEST, VAL, LabelFile, LabelledTable, ListedImages, load_labels
from densefeat.probing.candidates import BlockFitter, count_settings, fit_candidates, fit_few_shots, select_candidate
from densefeat.probing.certainty import add_certainty
from densefeat.probing.column_layers import find_layers
from densefeat.probing.data import ProbeData, assign_parts, load_data
from densefeat.probing.folder import FEATURES, TEST_FEATURES
from densefeat.probing.layers import LAYERS, choose_base
from densefeat.probing.layers_probe import count_probe_settings, describe_layers, select_layers
from densefeat.probing.protocols import describe_protocol
from densefeat.probing.request import make_request
from densefeat.probing.results import check_probe_folder, read_finished, write_report
from densefeat.store import Store, is_store, open_store


@dataclass(frozen=True)
class Probed:
    """A finished probe. ``results``: the content of ``results.json`` in ``path``; ``done_before``: an earlier call made it."""

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
    """Fit heads on the features of every block, alone and together; write a report and the best head to a folder.

    Heads and settings are selected on validation rows and reported on test rows.

    Args:
        store: A store of ``densefeat extract``; each of its columns of vectors is a candidate.
        out: The folder to write. If it holds the finished results of the same call, nothing is done.
        test: Another store of test rows, made in the same way; None: 20 % of the rows, stratified.
        protocol: ``"logreg"``, ``"knn"`` or ``"ridge"``, see :mod:`densefeat.probing.protocols`, or ``"layers"``, see
            :mod:`densefeat.probing.layers`; None: ridge for numbers, else logreg.
        standardize: For logreg: scale each feature by its mean and deviation over the training rows. ridge always does so.
        labels: A CSV file with the columns ``path`` and ``label``; None: the store's own column.
        label_column: The column of labels in the CSV file or the store, if it is not called ``label``.
        task: ``"single"``, ``"multi"`` (labels ``a|b``), ``"regression"``, or ``"auto"``: decide by the labels.
        split_column: A column of the CSV file or the store with ``train``, ``test`` and, optionally, ``val``.
        group_column: A column whose equal values, such as a patient, stay in one part. Rows of one path always do.
        seed: For the split, the intervals and the few-shot draws.
        images: Where the images of the test rows are, for the report; None: it shows none.

    Raises:
        UsageError: Labels, splits or stores cannot be used, or ``out`` holds something else.
        OutputError: ``out`` cannot be written.
    """
    out = Path(out)
    stores = [source if isinstance(source, Store) else open_store(source) for source in (store, test) if source is not None]
    data = load_data(stores, labels, label_column, task, split_column, group_column, seed)
    targets, columns, parts = data.labelled.targets, data.columns, data.parts
    protocol = protocol or ("ridge" if targets.task == "regression" else "logreg")
    if standardize and protocol != "logreg":
        raise UsageError(f"--standardize is for logreg: {protocol} {'always' if protocol == 'ridge' else 'never'} does so")
    if protocol == LAYERS:
        return _probe_layers(data, out, seed, images)
    description = describe_protocol(protocol, targets.task) | ({"standardize": standardize} if protocol == "logreg" else {})
    request = make_request(data, description, seed, images)
    if (results := read_finished(out, request)) is not None:
        return Probed(out, results, done_before=True)
    _check_writable(out)

    with progress_bar("fitting", count_settings(protocol, len(columns.widths)), "settings") as advance:
        fitter = BlockFitter(protocol, columns, targets, data.labelled.rows, parts, seed, advance, standardize)
        selection = select_candidate(fit_candidates(fitter), targets.take(parts == VAL), targets.take(parts == TEST), seed)
        if protocol == "ridge" and targets.task == "single":
            request = replace(request, few_shot=fit_few_shots(fitter))
        return Probed(out, write_report(out, add_certainty(selection, fitter), request))


def _probe_layers(data: ProbeData, out: Path, seed: int, images: str | None) -> Probed:
    """Probe by the protocol ``layers``. Arguments as of :func:`probe`."""
    labelled, provenance, task = data.labelled, data.stores[0].provenance, data.labelled.targets.task
    layers, notes = find_layers(provenance, data.columns.widths)
    request = make_request(data, describe_layers(task, layers), seed, images, by_group=True)
    if (results := read_finished(out, request)) is not None:
        return Probed(out, results, done_before=True)
    _check_writable(out)
    with progress_bar("fitting", count_probe_settings(task, len(data.columns.widths)), "settings") as advance:
        fitter = BlockFitter(choose_base(task), data.columns, labelled.targets, labelled.rows, data.parts, seed, advance)
        selection, better = select_layers(fitter, labelled.groups, layers, provenance)
    return Probed(
        out, write_report(out, add_certainty(selection, fitter), replace(request, notes=(*request.notes, *notes, *better)))
    )


def _check_writable(out: Path) -> None:
    """Raise OutputError before the work, not after it, if the folder cannot be made or written to."""
    with output_errors(out):
        existing = next(place for place in (out, *out.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass


def extract_images(
    images: str | Path, test: str | Path | None, out: Path, labelling: Mapping[str, Any], **settings: Any
) -> list[Path]:  # fmt: skip
    """Extract the images and the test images to stores in ``out``, unless that is done already; return the stores.

    ``test`` may be a store already. ``labelling``: the arguments of :func:`probe` that say what the labels are; labels that it
    would refuse are refused before the work. ``settings``: for :func:`densefeat.extract`. Raises as that does, UsageError if
    ``out`` holds other files than a probe, OutputError if it cannot be made.
    """
    check_probe_folder(out)
    _check_writable(out)
    settings |= source_options(images, labelling.get("labels"), labelling.get("label_column"))
    _check_labels(images, test, labelling, settings)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    extract(images, out / FEATURES, **settings)
    if test is None:
        return [out / FEATURES]
    if is_store(test):
        return [out / FEATURES, Path(test)]
    extract(test, out / TEST_FEATURES, **settings | _find_measured(out / FEATURES, settings))
    return [out / FEATURES, out / TEST_FEATURES]


def _find_measured(store: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured on a store's images as settings for others, which are converted in the same way."""
    made = Preprocessing.from_json(open_store(store).provenance["preprocessing"], f"store {str(store)!r}")
    stats = {"channel_stats": ChannelStats(made.mean, made.std)} if settings.get("channel_stats") else {}
    return {"pixels": made.pixels} | stats


def _check_labels(
    images: str | Path, test: str | Path | None, labelling: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:  # fmt: skip
    """Raise the UsageError that :func:`probe` will raise for the labels of these images, unless they are a stream."""
    reading = {name: settings[name] for name in ("labels", "label_column") if name in settings}
    options = {name: value for name, value in labelling.items() if name in ("task", "split_column", "group_column")}
    options |= label_options(labelling.get("labels"), labelling.get("label_column"))
    file = options.pop("labels", None)
    options["column"] = options.pop("label_column", None)
    label_file = None if file is None else LabelFile(Path(file))
    tables: list[LabelledTable | None] = []
    for place in (images, test):
        if place is not None and is_store(place):
            tables.append(open_store(place))
        elif place is not None:
            tables.append(ListedImages.from_source(open_source(place, **reading), str(place), reading))
    known = [table for table in tables if table is not None]
    if len(known) == len(tables):
        assign_parts(load_labels(known, label_file, **options), known, labelling.get("seed", 0))


def source_options(images: str | Path, labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """Choose how to open images so that their own labels come with them: options of :func:`densefeat.extract`."""
    if labels == "folder":
        return {"labels": "folder"}
    if labels is not None:
        return {}
    name = str(images).lower()
    if label_column is None and is_image_folder(images):
        return {"labels": "folder"}
    if label_column is None and name.endswith(tuple(DELIMITERS)):
        label_column = LABEL  # a list of images has its labels beside the paths
    if label_column is None and name.endswith(".tar"):
        label_column = TAR_LABEL
    return {"label_column": label_column} if label_column else {}


def label_options(labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """Choose where :func:`probe` finds the labels of extracted images: in a file, or in the stores themselves."""
    return {} if labels in (None, "folder") else {"labels": labels, "label_column": label_column}
