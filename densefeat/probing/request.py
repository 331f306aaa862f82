"""The request that a probe answers: data, protocol and seed, as results.json records them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densefeat.labels import TEST, LabelledRows, decode_labels, split_sha256
from densefeat.probing.data import ProbeData
from densefeat.store import ImageEntry, Store, make_thumbnails


@dataclass(frozen=True)
class ProbeRequest:
    """The protocol and the data of a probe.

    ``protocol``: see :func:`densefeat.probing.protocols.describe_protocol`. ``settings``: columns, labels and kind of test
    rows. ``sizes``: rows of each part; ``labels``: the report on them. ``paths``: of the test rows; ``places``: the page, x and
    y of each, int ``(n,)`` by these names, where they are pages or tiles. ``provenance``: of the features to learn from;
    ``test_provenance``: of another store of test rows. ``images``: where the images of the test rows are; None: the report
    shows none. ``few_shot``: results of few-shot fits.
    """

    protocol: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    sizes: dict[str, int]
    split_sha256: str
    labels: dict[str, Any]
    paths: Sequence[str]
    provenance: dict[str, Any]
    places: dict[str, np.ndarray] = field(default_factory=dict)
    test_provenance: dict[str, Any] | None = None
    images: str | None = None
    notes: tuple[str, ...] = ()
    few_shot: list[dict[str, Any]] = field(default_factory=list)

    def show_images(
        self, rows: Sequence[int], labels: Sequence[str]
    ) -> tuple[list[ImageEntry], dict[ImageEntry, str], str | None]:  # fmt: skip
        """Make thumbnails of some test rows: their entries, the pictures by entry, and why some are missing, or None."""
        entries = []
        for row, label in zip(rows, labels, strict=True):
            place = {name: int(values[row]) for name, values in self.places.items()}
            entries.append(ImageEntry(self.paths[row], label, **place))
        return entries, *make_thumbnails(self.test_provenance or self.provenance, entries, self.images)

    def identity(self) -> dict[str, Any]:
        """Select what determines the results: two requests with the same identity are one probe."""
        names = ("protocol", "settings", "seed", "split_sha256", "provenance", "test_provenance")
        return {name: getattr(self, name) for name in names}


def make_request(
    data: ProbeData, protocol: dict[str, Any], seed: int, images: str | None = None, by_group: bool = False
) -> ProbeRequest:
    """Collect what a report says of a probe. ``by_group``: whether its results depend on groups beyond the split."""
    labelled, stores = data.labelled, data.stores
    groups = {"groups_sha256": _groups_sha256(labelled)} if by_group else {}
    rows = np.flatnonzero(data.parts == TEST)
    return ProbeRequest(
        protocol=protocol,
        settings={
            "columns": data.columns.widths,
            "labels_sha256": _labels_sha256(labelled),
            "test": len(stores) > 1,
            **groups,
        },
        seed=seed,
        sizes=data.sizes(),
        split_sha256=split_sha256(labelled.paths, data.parts),
        labels=labelled.report,
        paths=[labelled.paths[row] for row in rows],
        provenance=stores[0].provenance,
        places=_read_places(stores, labelled.rows[rows]),
        test_provenance=stores[1].provenance if len(stores) > 1 else None,
        images=images,
        notes=data.notes,
    )


def _read_places(stores: Sequence[Store], rows: np.ndarray) -> dict[str, np.ndarray]:
    names = [name for name in ("page", "x", "y") if all(name in store.schema.names for store in stores)]
    return {name: np.concatenate([store[name] for store in stores])[rows] for name in names}


def _labels_sha256(labelled: LabelledRows) -> str:
    pairs = zip(labelled.paths, decode_labels(labelled.targets), strict=True)
    return hashlib.sha256(json.dumps([labelled.targets.task, *pairs]).encode()).hexdigest()


def _groups_sha256(labelled: LabelledRows) -> str:
    _, first, members = np.unique(labelled.groups, return_index=True, return_inverse=True)
    return hashlib.sha256(first[members].astype("<i8").tobytes()).hexdigest()  # however the groups are numbered
