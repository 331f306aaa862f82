"""The probe job: a store and labels to what its blocks are good for, and a fitted head."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import output_errors, progress_bar
from densefeat.errors import UsageError
from densefeat.labels import TEST, VAL, Labelled, names_of, split_sha256
from densefeat.probe.blocks import BlockFits, candidates, few_shot, number_of_settings
from densefeat.probe.candidates import conclude
from densefeat.probe.prepared import Prepared, prepare
from densefeat.probe.probe_file import FILE
from densefeat.probe.protocols import described
from densefeat.probe.request import ProbeRequest
from densefeat.probe.results import (
    BLOCKS,
    CONFUSION,
    KIND,
    PAGE,
    PREDICTIONS,
    RESULTS,
    SUFFIXES,
    files_of,
    plain,
    write_report,
)
from densefeat.store import Store, open_store

FEATURES, TEST_FEATURES = "features", "test-features"  # stores beside the results, where images were given
_PICTURES = tuple(f"{stem}{suffix}" for stem in (BLOCKS, CONFUSION) for suffix in SUFFIXES)
_OURS = {RESULTS, FILE, PAGE, PREDICTIONS, *_PICTURES, FEATURES, TEST_FEATURES}


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
    found = prepare(stores, labels, label_column, task, split_column, group_column, seed)
    targets, columns = found.labelled.targets, found.columns
    protocol = protocol or ("ridge" if targets.task == "regression" else "logreg")
    if standardize and protocol != "logreg":
        raise UsageError(f"--standardize is for logreg: {protocol} {'always' if protocol == 'ridge' else 'never'} does so")
    chosen = described(protocol, targets.task) | ({"standardize": standardize} if protocol == "logreg" else {})
    asked = asked_of(found, chosen, seed, images)
    if (before := finished(out, asked)) is not None:
        return Probed(out, before, done_before=True)
    _check_writable(out)
    with progress_bar("fitting", number_of_settings(protocol, len(columns.widths)), "settings") as advance:
        fits = BlockFits(protocol, columns, targets, found.labelled.rows, found.parts, seed, advance, standardize)
        return Probed(out, _run(fits, asked, out))


def _run(fits: BlockFits, asked: ProbeRequest, out: Path) -> dict[str, Any]:
    targets, parts = fits.targets, fits.parts
    concluded = conclude(candidates(fits), targets.take(parts == VAL), targets.take(parts == TEST), fits.seed)
    if fits.protocol == "ridge" and targets.task == "single":
        asked = replace(asked, few_shot=few_shot(fits))
    return write_report(out, concluded, asked)


def asked_of(found: Prepared, protocol: dict[str, Any], seed: int, images: str | None = None) -> ProbeRequest:
    labelled, parts, stores = found.labelled, found.parts, found.stores
    rows = np.flatnonzero(parts == TEST)
    paths = [labelled.paths[row] for row in rows]
    tiled = all("x" in store.schema.names for store in stores)
    places = [np.concatenate([store[name] for store in stores])[labelled.rows[rows]] for name in ("x", "y")] if tiled else None
    digest = split_sha256(labelled.paths, parts)
    settings = {
        "columns": found.columns.widths,
        "labels_sha256": _labels_sha256(labelled),
        "test": len(stores) > 1,
    }
    return ProbeRequest(
        protocol=protocol,
        settings=settings,
        seed=seed,
        sizes=found.sizes(),
        split_sha256=digest,
        labels=labelled.report,
        paths=paths,
        provenance=stores[0].provenance,
        places=None if places is None else np.stack(places, 1),
        test_provenance=stores[1].provenance if len(stores) > 1 else None,
        images=images,
        notes=found.notes,
    )


def _labels_sha256(labelled: Labelled) -> str:
    pairs = zip(labelled.paths, names_of(labelled.targets), strict=True)
    return hashlib.sha256(json.dumps([labelled.targets.task, *pairs]).encode()).hexdigest()


def finished(out: Path, asked: ProbeRequest) -> dict[str, Any] | None:
    """The results of the same probe, where ``out`` has all of it; None where it is free, or files have gone.

    UsageError: it holds something else.
    """
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
    whole = files_of(before["task"], len(before["classes"]))
    return before if all((out / name).exists() for name in whole) else None


def _check_writable(out: Path) -> None:
    """OutputError now, not after the work, where a folder cannot be made or written to."""
    with output_errors(out):
        there = next(place for place in (out, *out.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def check_free(out: Path) -> None:
    """UsageError where a folder holds something else than a probe, whole or begun; OutputError: it cannot be read."""
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"output {str(out)!r} is a file: name a folder")
        there = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") if out.exists() else []
    if others := [name for name in there if name not in _OURS]:
        raise UsageError(f"output {str(out)!r} holds something else than a probe ({others[0]!r}): name another --out")


def asked_before(asked: dict[str, Any]) -> dict[str, Any]:
    """Of what was asked, that which makes results what they are."""
    names = ("protocol", "settings", "seed", "split_sha256", "provenance", "test_provenance")
    return {name: asked[name] for name in names}
