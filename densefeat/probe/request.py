"""What a probe was asked, as its report tells it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ProbeRequest:
    """What was asked of which data.

    ``protocol``: as of :func:`densefeat.probe.protocols.described`. ``settings``: what another call would need to be the same.
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
