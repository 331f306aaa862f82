"""What a probe was asked, as its report tells it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densefeat.labels import TEST, LabelledRows, decode_labels, split_sha256
from densefeat.probe.data import ProbeData


@dataclass(frozen=True)
class ProbeRequest:
    """What was asked of which data.

    ``protocol``: as of :func:`densefeat.probe.protocols.describe_protocol`. ``settings``: what another call would need to be the same.
    ``sizes``: rows by part; ``labels``: the report on them. ``paths``, ``places``: of the test rows, int ``(n, 2)`` x and y of
    tiles. ``provenance``: of the features that were learnt from, ``test_provenance``: of the test rows, where they are others.
    ``images``: where they are, if not where the provenance says.
    """

    protocol: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    sizes: dict[str, int]
    split_sha256: str
    labels: dict[str, Any]
    paths: Sequence[str]
    provenance: dict[str, Any]
    places: np.ndarray | None = None
    test_provenance: dict[str, Any] | None = None
    images: str | None = None
    notes: tuple[str, ...] = ()
    few_shot: list[dict[str, Any]] = field(default_factory=list)


def identity(asked: dict[str, Any]) -> dict[str, Any]:
    """Of what was asked, that which makes results what they are."""
    names = ("protocol", "settings", "seed", "split_sha256", "provenance", "test_provenance")
    return {name: asked[name] for name in names}


def make_request(found: ProbeData, protocol: dict[str, Any], seed: int, images: str | None = None) -> ProbeRequest:
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


def _labels_sha256(labelled: LabelledRows) -> str:
    pairs = zip(labelled.paths, decode_labels(labelled.targets), strict=True)
    return hashlib.sha256(json.dumps([labelled.targets.task, *pairs]).encode()).hexdigest()
