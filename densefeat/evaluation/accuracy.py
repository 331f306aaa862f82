"""How well a network classifies labelled images: top-1 and top-5, single crop or ten, each class by itself."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    Arrays,
    DeviceImages,
    ImageDataset,
    Labelled,
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
    """``scores`` over ``classes``; ``unread``: key and reason of images that could not be read, which count nowhere."""

    model: str
    scores: AnyScores
    classes: list[str]
    crops: int
    image_size: int
    unlabelled: int
    unread: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Per cent, but for auroc; ``per_class`` in the order of the network's outputs."""
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
        {"class": name, "images": int(n), "top1": _share(one, n), "top5": _share(five, n)}
        for name, n, one, five in zip(classes, images, first, fifth, strict=True)
    ]


def _per_label(scores: LabelScores) -> list[dict[str, Any]]:
    """Each label by itself, as if it were the only one."""
    rows = []
    for column, name in enumerate(scores.targets.classes):
        alone = Targets("multi", (name,), scores.targets.values[:, [column]])
        images = int(alone.values.sum())
        rows.append({"class": name, "images": images, **compute_metrics(alone, scores.logits[:, [column]])})
    return rows


def _share(hits: float, images: float) -> float | None:
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
    """Accuracy of a network on the labelled images at ``data``; of one for several labels an image, mean average precision.

    Args:
        model: A name of timm's (with published weights, or with ``weights``), or the folder of a run.
        data: As :func:`densefeat.training.labelled.open_labelled` takes it; of CIFAR's and SVHN's files the test images.
        crops: 1, or 10: corners and centre, each mirrored, their softmax averaged (1608.06993, table 3).
        image_size: Pixels of a crop's side; None: the weights' own.
        crop_pct: The crop's share of the resized image's short side; None: the weights' own, or for ten crops 0.875.
        advance: Told of images done.

    Raises:
        UsageError: Unknown model or data, or classes that are not the network's.
        WeightsError: Weights that cannot be had.
        DensefeatError: No image can be read.
    """
    if crops not in (1, 10):
        raise UsageError(f"crops {crops}: choose 1 or 10")
    loaded = load_network(model, weights, head=True)
    network, names, task = loaded.model, loaded.classes, loaded.task
    preprocessing = _wanted_preprocessing(network, crops, image_size, crop_pct)
    if task == "multi" and crops != 1:
        raise UsageError(f"crops {crops}: {model!r} gives several labels an image: choose 1")
    labelled = open_labelled(data, train=False, label_column=label_column, classes=names, task=task)
    check_classes(data, labelled, network, names)
    place = torch.device(device)
    network = network.to(place).to(memory_format=torch.channels_last)
    world = World(0, 1, place)
    images, positions = images_of(labelled, preprocessing, crops, workers, place)

    def batches() -> Iterator[MicroBatch]:
        for x, y in images.eval_batches(positions):
            yield x.contiguous(memory_format=torch.channels_last) if crops == 1 else x, y
            advance(len(y))

    scores: AnyScores
    if task == "multi":
        scores = score_labels(network, batches(), labelled.classes, world)
    else:
        scores = score(network if crops == 1 else TenCrops(network), batches(), len(labelled.classes), world)
    unread = sorted(images.failures) if isinstance(images, WorkerImages) else []
    if not scores.images:
        raise DensefeatError(f"{data!r}: none of its images can be read, the first: {unread[0][0]}: {unread[0][1]}")
    missing = len(labelled.labels) - len(positions)
    return Evaluation(model, scores, labelled.classes, crops, preprocessing.size, missing, unread)


def check_classes(data: str, labelled: Labelled, network: nn.Module, names: list[str] | None) -> None:
    """UsageError where the classes of ``data`` are not the network's, or as many where its ``names`` are not known."""
    if len(labelled.classes) != network.num_classes:
        raise UsageError(
            f"{data!r} has {len(labelled.classes)} classes, the network {network.num_classes}: they cannot be matched"
        )
    if names is not None and labelled.classes != names:
        raise UsageError(f"{data!r}: its classes ({labelled.classes[0]}, …) are not the network's ({names[0]}, …)")


def _wanted_preprocessing(network: nn.Module, crops: int, image_size: int | None, crop_pct: float | None) -> Preprocessing:
    """The weights' own, but for what was asked; ten crops need something around the centre to be taken from."""
    own = Preprocessing.of(network, image_size)
    usual = own.crop_pct if crops == 1 or own.crop_pct < 1 else 0.875
    share_kept = usual if crop_pct is None else crop_pct
    if not 0 < share_kept <= 1:
        raise UsageError(f"crop_pct {crop_pct}: give a share, above 0 and at most 1")
    return Preprocessing(own.size, share_kept, own.crop_mode, own.interpolation, own.mean, own.std)


def images_of(
    labelled: Labelled, preprocessing: Preprocessing, crops: int, workers: int, device: torch.device
) -> tuple[DeviceImages | WorkerImages, Any]:
    """Images as the network wants them, and the positions of those with a label."""
    positions, size = labelled_positions(labelled.labels), preprocessing.size
    if isinstance(labelled, Arrays):
        if labelled.images.shape[1] != size or crops != 1:
            raise UsageError(
                f"image size {size}, crops {crops}: the images of {labelled.name} have {labelled.images.shape[1]} pixels "
                "and are taken whole"
            )
        return DeviceImages.from_arrays(labelled.images, labelled.labels, preprocessing, device, torch.float32), positions
    ten = TenCropGeometry(math.floor(size / preprocessing.crop_pct), size, preprocessing.interpolation) if crops == 10 else None
    images = ImageDataset(labelled, preprocessing, "none", 0, ten)
    return WorkerImages(images, preprocessing, workers, device, torch.float32, set()), positions


class TenCrops(nn.Module):
    """Log of the mean softmax over ten crops, ``(N, 10, 3, S, S)`` to ``(N, C)``; one crop of all images at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chances = [self.network(crop.contiguous(memory_format=torch.channels_last)).softmax(1) for crop in x.unbind(1)]
        return torch.stack(chances).mean(0).clamp_min(1e-30).log()
