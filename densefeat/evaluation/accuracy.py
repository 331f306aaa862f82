"""Accuracy of a network on labelled images: top-1 and top-5, with one crop or ten, and of each class."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.errors import DensefeatError, UsageError
from densefeat.evaluation.class_order import (
    ORDERS,
    describe_assumed_order,
    describe_other_order,
    find_recorded_classes,
    find_recorded_order,
    read_classes,
    read_records,
    reorder_classes,
    sort_names,
)
from densefeat.extraction import load_channel_stats
from densefeat.images import PixelRule, Preprocessing
from densefeat.labels import Targets
from densefeat.loading import LoadedNetwork, load_network
from densefeat.probing import compute_metrics
from densefeat.training import (
    AnyScores,
    DecodedImages,
    DeviceImages,
    EncodedImages,
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
    refuse_rule,
    score,
    score_labels,
)

_CERTAIN = ("weights", "file")  # orders of the classes that cannot be wrong


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network. Images that could not be read (``unread``: key, reason) count nowhere.

    ``class_order``: what the order of ``classes`` was taken from; ``notes``: remarks for the user.
    """

    model: str
    scores: AnyScores
    classes: list[str]
    crops: int
    image_size: int
    unlabelled: int
    unread: list[tuple[str, str]]
    class_order: str
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON: scores in per cent except auroc, ``per_class`` in the order of the network's outputs."""
        return {
            "model": self.model,
            "crops": self.crops,
            "image_size": self.image_size,
            "class_order": self.class_order,
            "notes": self.notes,
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
    base: str | None = None,
    class_order: str | None = None,
    classes: str | Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    pixels: PixelRule | None = None,
    channel_stats: str | Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measure the accuracy of a network on labelled images, or mean average precision with several labels an image.

    Args:
        model: A model name of timm (with published weights, or with ``weights``), or the folder of a run.
        data: The images, as :func:`densefeat.training.open_labelled` takes them; of CIFAR's and SVHN's files, and of a folder
            of splits, the test images, or without these its validation images.
        base: The folder that a list's paths are relative to; None: the list's own.
        class_order: For weights that do not name their classes: ``"text"``, as torchvision orders folders, or ``"natural"``, as
            timm does; None: as the program that wrote the weights, where that is known, else by text, and numbers by value.
        classes: A file of the classes in the order of the outputs, see :func:`densefeat.evaluation.class_order.read_classes`.
        crops: 1, or 10: corners and centre, each mirrored, their softmax averaged (1608.06993, table 3).
        image_size: Pixels of a crop's side; None: as the weights expect.
        crop_pct: The crop's share of the resized image's short side; None: as the weights expect, or for ten crops 0.875.
        pixels: Which channels are read, and what is black and white; None: as the run records, or as the weights expect.
        channel_stats: A JSON file with the mean and deviation of each channel, or a store made with them; None: the weights'.
        advance: Called with the number of images done since the last call.

    Raises:
        UsageError: The model or the data are unknown, or the classes are not the network's.
        WeightsError: The weights cannot be loaded.
        DensefeatError: No image can be read.
    """
    if crops not in (1, 10):
        raise UsageError(f"crops {crops}: choose 1 or 10")
    loaded = load_network(model, weights, head=True)
    network, task = loaded.model, loaded.task
    default = Preprocessing.for_model(network, image_size, pixels, load_channel_stats(channel_stats))
    preprocessing = _choose_preprocessing(default, crops, crop_pct)
    if task == "multi" and crops != 1:
        raise UsageError(f"crops {crops}: {model!r} gives several labels an image: choose 1")
    opened = open_for_network(loaded, data, label_column, base, class_order, classes)
    labelled, notes = opened.labelled, list(opened.notes)
    world = World(0, 1, torch.device(device))
    network = network.to(world.device).to(memory_format=torch.channels_last)
    images, positions = load_eval_images(labelled, preprocessing, crops, workers, world.device)
    recorder = _Recorder(network if crops == 1 else _TenCropAverage(network), len(labelled.classes))

    def batches() -> Iterator[MicroBatch]:
        for x, y in images.eval_batches(positions):
            yield x.contiguous(memory_format=torch.channels_last) if crops == 1 else x, y
            if task == "single":
                recorder.count(y)
            advance(len(y))

    scores: AnyScores
    if task == "multi":
        scores = score_labels(network, batches(), labelled.classes, world)
    else:
        scores = score(recorder, batches(), len(labelled.classes), world)
    unread = sorted(images.failures) if isinstance(images, WorkerImages) else []
    if not scores.images:
        raise DensefeatError(f"{data!r}: none of its images can be read, the first: {unread[0][0]}: {unread[0][1]}")
    if opened.class_order not in _CERTAIN and isinstance(scores, Scores) and (note := describe_other_order(recorder.confusion)):
        notes.append(note)
    if scores.remark is not None:
        notes.append(scores.remark)
    repeats = len(labelled.repeats) if isinstance(labelled, EncodedImages) else 0
    if repeats:
        notes.append(f"{repeats:,} lines of {data!r} repeat others")
    missing = len(labelled.labels) - len(positions) - repeats
    facts = (labelled.classes, crops, preprocessing.size, missing, unread, opened.class_order, notes)
    return Evaluation(model, scores, *facts)


@dataclass(frozen=True)
class OpenedImages:
    """Labelled images whose classes are the outputs of a network.

    ``class_order``: what their order was taken from: ``weights``, ``file``, ``data``, or an order of names; ``notes``: for the
    user.
    """

    labelled: LabelledImages
    class_order: str
    notes: tuple[str, ...] = ()


def open_for_network(
    loaded: LoadedNetwork,
    data: str,
    label_column: str | None = None,
    base: str | None = None,
    class_order: str | None = None,
    classes: str | Path | None = None,
) -> OpenedImages:
    """Open the images that a network is judged on; arguments as for :func:`evaluate`.

    Raises UsageError where the classes are not the network's, or their order is asked for though the weights name them.
    """
    if class_order is not None and class_order not in ORDERS:
        raise UsageError(f"class_order {class_order!r}: choose one of {', '.join(ORDERS)}")
    names, source = loaded.classes, "weights"
    if classes is not None:
        names, source = read_classes(Path(classes)), "file"
        if loaded.classes and names != loaded.classes and set(names) == set(loaded.classes):
            raise UsageError(f"classes {str(classes)!r}: the network has them in another order, which it names: leave it out")
    records = {} if names else read_records(loaded)
    names = names or find_recorded_classes(records, loaded.num_classes)
    if names is not None and class_order is not None:
        raise UsageError(f"class_order {class_order!r}: the classes are named by {source}, in their order: leave it out")
    labelled = open_labelled(data, train=False, label_column=label_column, classes=names, task=loaded.task, base=base)
    _check_classes(data, labelled, loaded.model, names)
    notes = []
    if isinstance(labelled, EncodedImages) and labelled.place != data:
        notes.append(f"{data!r} holds splits: the figures are of {labelled.place!r}")
    if names is not None:
        return OpenedImages(labelled, source, tuple(notes))
    if class_order is None and (isinstance(labelled, DecodedImages) or labelled.source.class_names() is not None):
        return OpenedImages(labelled, "data", tuple(notes))
    order = class_order or find_recorded_order(records)
    if order is not None:
        return OpenedImages(reorder_classes(labelled, sort_names(labelled.classes, order)), order, tuple(notes))
    assumed = describe_assumed_order(labelled.classes)
    return OpenedImages(labelled, "assumed", (*notes, *([assumed] if assumed else [])))


def _check_classes(data: str, labelled: LabelledImages, network: nn.Module, names: list[str] | None) -> None:
    """Raise UsageError if the classes of ``data`` are not the network's; without ``names``, compare their number."""
    if len(labelled.classes) != network.num_classes:
        advice = "" if names else ", unless --classes FILE names those of the network"
        raise UsageError(
            f"{data!r} has {len(labelled.classes)} classes, the network {network.num_classes}: they cannot be matched{advice}"
        )
    if names is not None and labelled.classes != names:
        raise UsageError(f"{data!r}: its classes ({labelled.classes[0]}, …) are not the network's ({names[0]}, …)")


def _choose_preprocessing(default: Preprocessing, crops: int, crop_pct: float | None) -> Preprocessing:
    """Return the weights' preprocessing with the options applied; ten crops need a margin to shift in."""
    if default.pixels.must_be_measured:
        raise UsageError(f"range {default.pixels.range!r} is measured where a model is made: give LOW:HIGH, or image:p1:p99")
    if crops == 10 and default.pixels.floating:
        raise UsageError(f"crops {crops}: only of images in three channels")
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
        refuse_rule(labelled, preprocessing.pixels)
        if labelled.images.shape[1] != size or crops != 1:
            raise UsageError(
                f"image size {size}, crops {crops}: the images of {labelled.name} have {labelled.images.shape[1]} pixels "
                "and can only be used uncropped"
            )
        return DeviceImages.from_arrays(labelled.images, labelled.labels, preprocessing, device, torch.float32), positions
    ten = TenCropGeometry(math.floor(size / preprocessing.crop_pct), size, preprocessing.interpolation) if crops == 10 else None
    images = ImageDataset(labelled, preprocessing, "none", 0, ten)
    return WorkerImages(images, preprocessing, workers, device, torch.float32, set()), positions


class _Recorder(nn.Module):
    """A network that counts its predictions by label. ``confusion``: int64 ``(C, C)``, images by label and prediction."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.confusion = np.zeros((classes, classes), np.int64)
        self._predicted = torch.empty(0, dtype=torch.int64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        self._predicted = logits.argmax(1)
        return logits

    def count(self, y: torch.Tensor) -> None:
        """Count the last predictions; images with label -1 do not count."""
        known = y >= 0
        np.add.at(self.confusion, (y[known].cpu().numpy(), self._predicted[known].cpu().numpy()), 1)


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
