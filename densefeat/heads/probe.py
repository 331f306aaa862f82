"""The probe job: a store and labels to what its blocks are good for, and a fitted head."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.extract.progress import progress_bar
from densefeat.heads.blocks import Fits, candidates, few_shot, number_of_settings
from densefeat.heads.candidates import conclude
from densefeat.heads.classes import names_of
from densefeat.heads.columns import Columns, columns_of
from densefeat.heads.label_file import LabelFile
from densefeat.heads.label_report import absent_classes, few, lone_classes
from densefeat.heads.labels import Labelled, gather
from densefeat.heads.probe_file import FILE
from densefeat.heads.protocols import described
from densefeat.heads.results import BLOCKS, CONFUSION, KIND, PAGE, PREDICTIONS, RESULTS, Asked, plain, write_report
from densefeat.heads.splits import PARTS, TEST, TRAIN, VAL, hold_out_val, split, split_sha256
from densefeat.heads.targets import Targets
from densefeat.store.reader import Store, open_store

FEATURES, TEST_FEATURES = "features", "test-features"  # stores beside the results, where images were given
PICTURES = tuple(f"{stem}{suffix}" for stem in (BLOCKS, CONFUSION) for suffix in (".png", ".svg"))
OURS = {RESULTS, FILE, PAGE, PREDICTIONS, *PICTURES, FEATURES, TEST_FEATURES}


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
        protocol: ``"logreg"``, ``"knn"`` or ``"ridge"``; see :mod:`densefeat.heads.protocols`. None: logreg, for numbers ridge.
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
    if split_column is not None and test is not None:
        raise UsageError("--split-column names the test rows, and --test gives others: give one of them")
    stores = [known if isinstance(known, Store) else open_store(known) for known in (store, test) if known is not None]
    columns, notes = columns_of(stores)
    check_overlap(stores)
    file = None if labels is None else LabelFile(Path(labels))
    labelled = gather(stores, file, label_column, task, split_column, group_column)
    protocol = protocol or ("ridge" if labelled.targets.task == "regression" else "logreg")
    if standardize and protocol != "logreg":
        raise UsageError(f"--standardize is for logreg: {protocol} {'always' if protocol == 'ridge' else 'never'} does so")
    chosen = described(protocol, labelled.targets.task) | ({"standardize": standardize} if protocol == "logreg" else {})
    parts = parts_of(labelled, stores, seed)
    labelled = reported(labelled, parts, judged=labelled.parts is None)
    check_parts(labelled.targets, parts)
    notes += leaks(labelled, parts)
    asked = asked_of(labelled, parts, stores, columns, chosen, seed, images, tuple(notes))
    if (before := finished(out, asked)) is not None:
        return Probed(out, before, done_before=True)
    with progress_bar("fitting", number_of_settings(protocol, len(columns.widths)), "settings") as advance:
        fits = Fits(protocol, columns, labelled.targets, labelled.rows, parts, seed, advance, standardize)
        return Probed(out, run(fits, asked, out))


def run(fits: Fits, asked: Asked, out: Path) -> dict[str, Any]:
    targets, parts = fits.targets, fits.parts
    concluded = conclude(candidates(fits), targets.take(parts == VAL), targets.take(parts == TEST), fits.seed)
    if fits.protocol == "ridge" and targets.task == "single":
        asked = replace(asked, few_shot=few_shot(fits))
    return write_report(out, concluded, asked)


def parts_of(labelled: Labelled, stores: list[Store], seed: int) -> np.ndarray:
    """int8 ``(n,)``: as the labels tell, by the test store, or drawn."""
    if len(stores) > 1:
        parts = np.where(labelled.rows < len(stores[0]), TRAIN, TEST).astype(np.int8)
    elif labelled.parts is not None:
        parts = labelled.parts
    else:
        return split(labelled.targets, seed, labelled.groups)
    if not (parts == TRAIN).any() or (parts == VAL).any():
        return parts
    return hold_out_val(labelled.targets, parts, seed, labelled.groups)


def reported(labelled: Labelled, parts: np.ndarray, judged: bool) -> Labelled:
    """With what the split did to the classes. ``judged``: whether the split was ours."""
    targets = labelled.targets
    more: dict[str, Any] = {"classes": len(targets.classes)}
    more["untrained_classes"] = few(absent_classes(targets.take(parts != TEST)))
    if judged:
        more["lone_classes"] = few(lone_classes(targets, labelled.groups))
    return replace(labelled, report=labelled.report | more)


def check_parts(targets: Targets, parts: np.ndarray) -> None:
    """UsageError where a part has no rows, or there is too little to learn from."""
    sizes = {name: int(np.count_nonzero(parts == part)) for part, name in enumerate(PARTS)}
    for name, size in sizes.items():
        if not size:
            told = ", ".join(f"{count} {part}" for part, count in sizes.items())
            raise UsageError(f"no {name} rows with a label ({told}): give more labels, or another split")
    if sizes["train"] < len(targets.classes):
        raise UsageError(
            f"{sizes['train']} training rows for {len(targets.classes)} classes: give more rows, or fewer classes"
            " (numbers to predict, not classes? --task regression)"
        )


def check_overlap(stores: list[Store]) -> None:
    """UsageError where test rows are among those to learn from."""
    places = [store.provenance.get("images") for store in stores]
    if len(stores) < 2 or places[0] is None or places[0] != places[1]:
        return
    both = np.intersect1d(stores[0].keys.astype(str), stores[1].keys.astype(str))
    if len(both):
        raise UsageError(
            f"{len(both):,} images of {stores[1].path} are in {stores[0].path}, too, {str(both[0])!r} first: give other test"
            " images, or one store with --split-column"
        )


def leaks(labelled: Labelled, parts: np.ndarray) -> list[str]:
    """What a given split tears apart."""
    members = np.unique(np.stack([labelled.groups, parts.astype(np.int64)], 1), axis=0)[:, 0]
    torn = int(np.count_nonzero(np.bincount(members) > 1))
    return [f"{torn:,} images (or groups) have rows in several parts: figures will be too good"] if torn else []


def asked_of(
    labelled: Labelled,
    parts: np.ndarray,
    stores: list[Store],
    columns: Columns,
    protocol: dict[str, Any],
    seed: int,
    images: str | None,
    notes: tuple[str, ...],
) -> Asked:
    rows = np.flatnonzero(parts == TEST)
    paths = [labelled.paths[row] for row in rows]
    tiled = all("x" in store.schema.names for store in stores)
    places = [np.concatenate([store[name] for store in stores])[labelled.rows[rows]] for name in ("x", "y")] if tiled else None
    digest = split_sha256(labelled.paths, parts)
    settings = {
        "columns": columns.widths,
        "labels_sha256": labels_sha256(labelled),
        "test": len(stores) > 1,
    }
    return Asked(
        protocol=protocol,
        settings=settings,
        seed=seed,
        sizes={name: int(np.count_nonzero(parts == part)) for part, name in enumerate(PARTS)},
        split_sha256=digest,
        labels=labelled.report,
        paths=paths,
        provenance=stores[0].provenance,
        places=None if places is None else np.stack(places, 1),
        test_provenance=stores[1].provenance if len(stores) > 1 else None,
        images=images,
        notes=notes,
    )


def labels_sha256(labelled: Labelled) -> str:
    pairs = zip(labelled.paths, names_of(labelled.targets), strict=True)
    return hashlib.sha256(json.dumps([labelled.targets.task, *pairs]).encode()).hexdigest()


def finished(out: Path, asked: Asked) -> dict[str, Any] | None:
    """The results of the same probe, where ``out`` has them; None where it is free. UsageError: it holds something else."""
    check_free(out)
    if not (out / RESULTS).exists():
        return None
    shown = repr(str(out))
    try:
        before = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        kind = before.get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND:
        raise UsageError(f"output {shown}: its {RESULTS} is not of a probe: name another --out")
    now = plain(asked_before(vars(asked)))
    if differing := [name for name, value in now.items() if before.get(name) != value]:
        raise UsageError(f"output {shown} holds another probe ({', '.join(differing)} differ): name another --out")
    return before


def check_free(out: Path) -> None:
    """UsageError where a folder holds something else than a probe, whole or begun."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"output {str(out)!r} is a file: name a folder")
    there = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") if out.exists() else []
    if others := [name for name in there if name not in OURS]:
        raise UsageError(f"output {str(out)!r} holds something else than a probe ({others[0]!r}): name another --out")


def asked_before(asked: dict[str, Any]) -> dict[str, Any]:
    """Of what was asked, that which makes results what they are."""
    names = ("protocol", "settings", "seed", "split_sha256", "provenance", "test_provenance")
    return {name: asked[name] for name in names}
