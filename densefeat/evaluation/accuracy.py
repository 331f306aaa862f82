"""Accuracy of a network on labelled images: top-1 and top-5, with one crop or ten, and of each class."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.errors import DensefeatError, UsageError
from densefeat.images import Preprocessing
from densefeat.labels import Targets
from densefeat.loading import load_network
from densefeat.probe import compute_metrics
from densefeat.training import (
    AnyScores,
    DecodedImages,
    DeviceImages,
    ImageDataset,
    LabelledImages,
    LabelScores,
    MicroBatch,
    Scores,
    TenCropGeometry,
    WorkerImages,
    World,
    labelled_positions,
    open_labelled,
    score,
    score_labels,
)


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network. Images that could not be read (``unread``: key, reason) count nowhere."""

    model: str
    scores: AnyScores
    classes: list[str]
    crops: int
    image_size: int
    unlabelled: int
    unread: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON: scores in per cent except auroc, ``per_class`` in the order of the network's outputs."""
        return {
            "model": self.model,
            "crops": self.crops,
            "image_size": self.image_size,
            **self.scores.to_json(),
            "unlabelled": self.unlabelled,
            "unread": [{"key": key, "reason": reason} for key, reason in self.unread],
            "per_class": _per_class(self.scores, self.classes) if isinstance(self.scores, Scores) else _per_label(self.scores),
        }


def _per_class(scores: Scores, classes: list[str]) -> list[dict[str, Any]]:
    images, first, fifth = scores.counts.tolist()
    return [
        {"class": name, "images": int(n), "top1": _per_cent(one, n), "top5": _per_cent(five, n)}
        for name, n, one, five in zip(classes, images, first, fifth, strict=True)
    ]


def _per_label(scores: LabelScores) -> list[dict[str, Any]]:
    """Return the scores of each label, computed as if it were the only one."""
    rows = []
    for column, name in enumerate(scores.targets.classes):
        alone = Targets("multi", (name,), scores.targets.values[:, [column]])
        images = int(alone.values.sum())
        rows.append({"class": name, "images": images, **compute_metrics(alone, scores.logits[:, [column]])})
    return rows


def _per_cent(hits: float, images: float) -> float | None:
    return round(100 * hits / images, 4) if images else None


def evaluate(
    model: str,
    data: str,
    *,
    weights: str | Path | None = None,
    crops: int = 1,
    image_size: int | None = None,
    crop_pct: float | None = None,
    label_column: str | None = None,
    device: str = "cpu",
    workers: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measure the accuracy of a network on labelled images, or mean average precision with several labels an image.

    Args:
        model: A model name of timm (with published weights, or with ``weights``), or the folder of a run.
        data: The images, as :func:`densefeat.training.open_labelled` takes them; of CIFAR's and SVHN's files, the test images.
        crops: 1, or 10: corners and centre, each mirrored, their softmax averaged (1608.06993, table 3).
        image_size: Pixels of a crop's side; None: as the weights expect.
        crop_pct: The crop's share of the resized image's short side; None: as the weights expect, or for ten crops 0.875.
        advance: Called with the number of images done since the last call.

    Raises:
        UsageError: The model or the data are unknown, or the classes are not the network's.
        WeightsError: The weights cannot be loaded.
        DensefeatError: No image can be read.
    """
    if crops not in (1, 10):
        raise UsageError(f"crops {crops}: choose 1 or 10")
    loaded = load_network(model, weights, head=True)
    network, names, task = loaded.model, loaded.classes, loaded.task
    preprocessing = _choose_preprocessing(network, crops, image_size, crop_pct)
    if task == "multi" and crops != 1:
        raise UsageError(f"crops {crops}: {model!r} gives several labels an image: choose 1")
    labelled = open_labelled(data, train=False, label_column=label_column, classes=names, task=task)
    check_classes(data, labelled, network, names)
    world = World(0, 1, torch.device(device))
    network = network.to(world.device).to(memory_format=torch.channels_last)
    images, positions = load_eval_images(labelled, preprocessing, crops, workers, world.device)

    def batches() -> Iterator[MicroBatch]:
        for x, y in images.eval_batches(positions):
            yield x.contiguous(memory_format=torch.channels_last) if crops == 1 else x, y
            advance(len(y))

    scores: AnyScores
    if task == "multi":
        scores = score_labels(network, batches(), labelled.classes, world)
    else:
        scores = score(network if crops == 1 else _TenCropAverage(network), batches(), len(labelled.classes), world)
    unread = sorted(images.failures) if isinstance(images, WorkerImages) else []
    if not scores.images:
        raise DensefeatError(f"{data!r}: none of its images can be read, the first: {unread[0][0]}: {unread[0][1]}")
    missing = len(labelled.labels) - len(positions)
    return Evaluation(model, scores, labelled.classes, crops, preprocessing.size, missing, unread)


def check_classes(data: str, labelled: LabelledImages, network: nn.Module, names: list[str] | None) -> None:
    """Raise UsageError if the classes of ``data`` are not the network's; without ``names``, compare their number."""
    if len(labelled.classes) != network.num_classes:
        raise UsageError(
            f"{data!r} has {len(labelled.classes)} classes, the network {network.num_classes}: they cannot be matched"
        )
    if names is not None and labelled.classes != names:
        raise UsageError(f"{data!r}: its classes ({labelled.classes[0]}, …) are not the network's ({names[0]}, …)")


def _choose_preprocessing(network: nn.Module, crops: int, image_size: int | None, crop_pct: float | None) -> Preprocessing:
    """Return the weights' preprocessing with the options applied; ten crops need a margin to shift in."""
    default = Preprocessing.for_model(network, image_size)
    usual_share = default.crop_pct if crops == 1 or default.crop_pct < 1 else 0.875
    share = usual_share if crop_pct is None else crop_pct
    if not 0 < share <= 1:
        raise UsageError(f"crop_pct {crop_pct}: give a share, above 0 and at most 1")
    return replace(default, crop_pct=share)


def load_eval_images(
    labelled: LabelledImages, preprocessing: Preprocessing, crops: int, workers: int, device: torch.device
) -> tuple[DeviceImages | WorkerImages, Any]:
    """Return preprocessed images, and the positions of those with a label."""
    positions, size = labelled_positions(labelled.labels), preprocessing.size
    if isinstance(labelled, DecodedImages):
        if labelled.images.shape[1] != size or crops != 1:
            raise UsageError(
                f"image size {size}, crops {crops}: the images of {labelled.name} have {labelled.images.shape[1]} pixels "
                "and can only be used uncropped"
            )
        return DeviceImages.from_arrays(labelled.images, labelled.labels, preprocessing, device, torch.float32), positions
    ten = TenCropGeometry(math.floor(size / preprocessing.crop_pct), size, preprocessing.interpolation) if crops == 10 else None
    images = ImageDataset(labelled, preprocessing, "none", 0, ten)
    return WorkerImages(images, preprocessing, workers, device, torch.float32, set()), positions


class _TenCropAverage(nn.Module):
    """A network that averages softmax over ten crops, one crop of all images at a time.

    ``(N, 10, 3, S, S)`` to log probabilities ``(N, C)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = [self.network(crop.contiguous(memory_format=torch.channels_last)).softmax(1) for crop in x.unbind(1)]
        return torch.stack(probabilities).mean(0).clamp_min(1e-30).log()
