"""The labelled images that a network is judged on, some of them, ready to be fed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densefeat.errors import DensefeatError, UsageError
from densefeat.evaluation import check_classes, images_of
from densefeat.images import Preprocessing, is_remote
from densefeat.loading import load_network
from densefeat.report.connections import check_classifies
from densefeat.report.reuse import check_structure
from densefeat.store import Layout, is_embeddings, open_store, read_manifest
from densefeat.training import open_labelled

_PIECE_ON_CPU = {"cpu": 8}  # images at a time: a block's maps stay in the caches
_PIECE_ON_GPU = 128


@dataclass(frozen=True)
class Sample:
    """Images float32 ``(N, 3, S, S)``, normalised as the network wants them, and labels int64 ``(N,)``; of ``there`` in all."""

    images: torch.Tensor
    labels: torch.Tensor
    there: int

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, which: slice) -> "Sample":
        return Sample(self.images[which], self.labels[which], self.there)

    def pieces(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = _PIECE_ON_CPU.get(self.images.device.type, _PIECE_ON_GPU)
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)

    def sha256(self) -> str:
        """Of images and labels, in hexadecimal."""
        digest = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        digest.update(np.ascontiguousarray(self.images.cpu().numpy()).data)
        return digest.hexdigest()


def load_sample(
    model: str, weights: str | Path | None, images: str, limit: int, label_column: str | None = None, device: str = "cpu"
) -> tuple[nn.Module, Sample]:
    """A network that classifies, in eval mode, and at most ``limit`` labelled images, evenly spread over those at ``images``.

    Args:
        model: As :func:`densefeat.evaluation.accuracy.evaluate` takes it.
        images: As there; or a store: the images it was made of, with their labels.
        label_column: As there.

    Raises:
        UsageError: Unknown model or images, a network without a known structure and a linear classifier, classes that are not
            the network's, or fewer than two images with a label.
        WeightsError: Weights that cannot be had.
        DensefeatError: No image can be read.
    """
    check_structure(model)
    loaded = load_network(model, weights, head=True)
    network, names = loaded.model, loaded.classes
    check_classifies(network)
    if loaded.task == "multi":
        raise UsageError(f"{model!r} gives several labels an image: accuracy is of networks that give one")
    place, label_column = _find_store_images(images, label_column)
    labelled = open_labelled(place, train=False, label_column=label_column, classes=names)
    check_classes(place, labelled, network, names)
    source, positions = images_of(labelled, Preprocessing.of(network), 1, 0, torch.device(device))
    if len(positions) < 2:
        raise UsageError(f"{place!r}: {len(positions)} images with a label, at least 2 are needed")
    chosen = _choose_evenly(positions, limit)
    parts = [(x[y >= 0], y[y >= 0]) for x, y in source.eval_batches(chosen)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not len(y):
        raise DensefeatError(f"{place!r}: none of its images can be read")
    return network.to(device), Sample(x, y, len(positions))


def _choose_evenly(positions: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of the positions, in order."""
    if len(positions) <= limit:
        return positions
    return positions[np.linspace(0, len(positions) - 1, limit).round().astype(int)]


def _find_store_images(images: str, label_column: str | None) -> tuple[str, str | None]:
    """Where the images of a store are, and the column of their labels; ``images`` itself where it is no store."""
    if not _is_store(Path(images)):
        return images, label_column
    provenance = open_store(images).provenance
    place, options = provenance.get("images"), provenance.get("input_options") or {}
    if provenance.get("tiles"):
        raise UsageError(f"store {images!r}: of tiles, which have no labels of their own: give labelled images")
    if place is None or is_remote(place):
        raise UsageError(f"store {images!r}: its images were at {place}: give the labelled images themselves")
    return place, label_column or options.get("label_column")


def _is_store(path: Path) -> bool:
    if path.is_dir():
        return Layout(path).data.is_dir() and read_manifest(Layout(path)) is not None
    return path.suffix == ".parquet" and path.is_file() and is_embeddings(path)
