"""The labelled images on which a network is judged, ready for the network."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densefeat.errors import DensefeatError, UsageError
from densefeat.evaluation import load_eval_images, open_for_network
from densefeat.images import Preprocessing, is_remote
from densefeat.loading import load_network
from densefeat.report.connections import check_classifies
from densefeat.report.reuse import check_structure
from densefeat.store import is_store, open_store

_log = logging.getLogger(__name__)
_PIECE_ON_CPU = 8  # images at a time, so that a block's maps stay in the caches
_PIECE_ON_GPU = 128


@dataclass(frozen=True)
class Sample:
    """Images float32 ``(N, 3, S, S)``, normalised for the network, and labels int64 ``(N,)``, out of ``available`` in all."""

    images: torch.Tensor
    labels: torch.Tensor
    available: int

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, which: slice) -> "Sample":
        return Sample(self.images[which], self.labels[which], self.available)

    def pieces(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = _PIECE_ON_CPU if self.images.device.type == "cpu" else _PIECE_ON_GPU
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)

    def sha256(self) -> str:
        """Return the SHA-256 of images and labels, in hexadecimal."""
        digest = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        digest.update(np.ascontiguousarray(self.images.cpu().numpy()).data)
        return digest.hexdigest()


def load_sample(
    model: str, weights: str | Path | None, images: str, limit: int, label_column: str | None = None, device: str = "cpu"
) -> tuple[nn.Module, Sample]:
    """Load a network in eval mode, and at most ``limit`` labelled images, spread evenly over those at ``images``.

    Args:
        model, label_column: See :func:`densefeat.evaluation.evaluate`.
        images: Labelled images, as for ``evaluate``, or a store, whose original images are then read.

    Raises:
        UsageError: The model or the images are unknown, the network's structure is not known or has no linear classifier, the
            classes are not the network's, or fewer than two images have a label.
        WeightsError: The weights cannot be loaded.
        DensefeatError: No image can be read.
    """
    check_structure(model)
    loaded = load_network(model, weights, head=True)
    network = loaded.model
    check_classifies(network)
    if loaded.task == "multi":
        raise UsageError(f"{model!r} predicts several labels an image: take a network that predicts one class")
    place, label_column = _find_store_images(images, label_column)
    opened = open_for_network(loaded, place, label_column)
    labelled = opened.labelled
    for note in opened.notes:
        _log.warning("%s", note)
    source, positions = load_eval_images(labelled, Preprocessing.for_model(network), 1, 0, torch.device(device))
    if len(positions) < 2:
        raise UsageError(f"{place!r}: {len(positions)} images have a label; at least 2 are needed")
    chosen = _choose_evenly(positions, limit)
    parts = [(x[y >= 0], y[y >= 0]) for x, y in source.eval_batches(chosen)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not len(y):
        raise DensefeatError(f"{place!r}: none of its images can be read")
    return network.to(device), Sample(x, y, len(positions))


def _choose_evenly(positions: np.ndarray, limit: int) -> np.ndarray:
    """Return at most ``limit`` of the positions, in order."""
    if len(positions) <= limit:
        return positions
    return positions[np.linspace(0, len(positions) - 1, limit).round().astype(int)]


def _find_store_images(images: str, label_column: str | None) -> tuple[str, str | None]:
    """Return where a store's images are, and the column of their labels; ``images`` itself if it is not a store."""
    if not is_store(images):
        return images, label_column
    provenance = open_store(images).provenance
    place, options = provenance.get("images"), provenance.get("input_options") or {}
    if provenance.get("tiles"):
        raise UsageError(f"store {images!r} has tiles, which have no labels: give labelled images")
    if place is None or is_remote(place):
        raise UsageError(f"store {images!r} was made from images at {place}: give labelled images on this machine")
    return place, label_column or options.get("label_column")
