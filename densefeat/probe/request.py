"""The request that a probe answers: data, protocol and seed, as results.json records them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densefeat.labels import TEST, LabelledRows, decode_labels, split_sha256
from densefeat.probe.data import ProbeData
from densefeat.store import Store


@dataclass(frozen=True)
class ProbeRequest:
    """The protocol and the data of a probe.

    ``protocol``: see :func:`densefeat.probe.protocols.describe_protocol`. ``settings``: columns, labels and kind of test
    rows. ``sizes``: rows of each part; ``labels``: the report on them. ``paths``, ``places``: of the test rows, and int
    ``(n, 2)`` x and y where they are tiles. ``provenance``: of the features to learn from; ``test_provenance``: of another
    store of test rows. ``images``: where the images of the test rows are; None: the report shows none. ``few_shot``: results
    of few-shot fits.
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

    def identity(self) -> dict[str, Any]:
        """Select what determines the results: two requests with the same identity are one probe."""
        names = ("protocol", "settings", "seed", "split_sha256", "provenance", "test_provenance")
        return {name: getattr(self, name) for name in names}


def make_request(data: ProbeData, protocol: dict[str, Any], seed: int, images: str | None = None) -> ProbeRequest:
    labelled, stores = data.labelled, data.stores
    rows = np.flatnonzero(data.parts == TEST)
    tiled = all("x" in store.schema.names for store in stores)
    return ProbeRequest(
        protocol=protocol,
        settings={
            "columns": data.columns.widths,
            "labels_sha256": _labels_sha256(labelled),
            "test": len(stores) > 1,
        },
        seed=seed,
        sizes=data.sizes(),
        split_sha256=split_sha256(labelled.paths, data.parts),
        labels=labelled.report,
        paths=[labelled.paths[row] for row in rows],
        provenance=stores[0].provenance,
        places=_tile_places(stores, labelled.rows[rows]) if tiled else None,
        test_provenance=stores[1].provenance if len(stores) > 1 else None,
        images=images,
        notes=data.notes,
    )


def _tile_places(stores: Sequence[Store], rows: np.ndarray) -> np.ndarray:
    return np.stack([np.concatenate([store[name] for store in stores])[rows] for name in ("x", "y")], 1)


def _labels_sha256(labelled: LabelledRows) -> str:
    pairs = zip(labelled.paths, decode_labels(labelled.targets), strict=True)
    return hashlib.sha256(json.dumps([labelled.targets.task, *pairs]).encode()).hexdigest()
