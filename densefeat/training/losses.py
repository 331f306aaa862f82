"""What a step minimises: cross entropy of one class, or of each label by itself; with mixed images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup

from densefeat.finetuning import AnyRecipe, mixes
from densefeat.labels import Task
from densefeat.training.device_data import Part

_RAREST = 100.0  # times that an error on a rare class may cost more than on others


@dataclass(frozen=True)
class Loss:
    """``weights``: ``(C,)`` of classes, for multi-label those of a label that is there; None: all alike."""

    task: Task
    num_classes: int
    smoothing: float
    weights: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The sum over images, ``()``: of logits ``(n, C)``; an image without a label adds nothing.

        y: int64 ``(n,)``, -1 where there is none; multi-label ``(n, C)``, -1 throughout; or shares of all classes, mixed:
        float ``(n, C)``, which sum to 0 where there is no label.
        """
        if self.task == "multi":
            return self.of_labels(logits, y)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        if not y.is_floating_point():
            return F.cross_entropy(
                logits, y, weights, ignore_index=-1, reduction="sum", label_smoothing=self.smoothing
            )  # fmt: skip
        smooth = y * (1 - self.smoothing) + y.sum(1, keepdim=True) * (self.smoothing / self.num_classes)
        return F.cross_entropy(logits, smooth.to(logits.dtype), weights, reduction="sum")

    def of_labels(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean over labels of their binary cross entropy, summed over images."""
        y = y.to(logits.dtype)
        there = (y >= 0).to(logits.dtype)
        smooth = y.clamp(min=0) * (1 - self.smoothing) + self.smoothing / 2
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, smooth, there, reduction="sum", pos_weight=weights)
        return losses / self.num_classes

    @property
    def guess(self) -> float:
        """The loss of guessing."""
        return math.log(2 if self.task == "multi" else max(self.num_classes, 2))

    def hits(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The sum over images of 1 where the class is right; multi-label: of the share of labels that are."""
        if self.task == "multi":
            return (((logits > 0) == (y > 0)) & (y >= 0)).sum() / self.num_classes
        return (logits.argmax(1) == y).sum()

    def count(self, y: torch.Tensor) -> torch.Tensor:
        """Images with a label."""
        return (y >= 0).sum() if y.ndim == 1 else (y[:, 0] >= 0).sum()


def loss_of(recipe: AnyRecipe, task: Task, labels: np.ndarray, num_classes: int, device: torch.device) -> Loss:
    """``labels``: of the training images, int64 ``(n,)`` or int8 ``(n, C)``."""
    weights = _class_weights(task, labels, num_classes) if recipe.class_weights == "balanced" else None
    return Loss(task, num_classes, recipe.label_smoothing, None if weights is None else weights.to(device))


def _class_weights(task: Task, labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """float32 ``(C,)``: single, n / (C · images of the class); multi, images without the label for each one with it."""
    if task == "multi":
        with_label = (labels > 0).sum(0)
        weights = (len(labels) - with_label) / np.maximum(with_label, 1)
        return torch.from_numpy(weights.clip(1 / _RAREST, _RAREST)).float()
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy((len(labels) / (num_classes * np.maximum(counts, 1))).clip(max=_RAREST)).float()


@dataclass(frozen=True)
class Mixing:
    """timm's mixup and cutmix, of images with those from the other end of the batch; drawn by seed, step and part alone."""

    mixup: Mixup
    task: Task
    num_classes: int
    seed: int

    def __call__(self, part: Part, step: int, number: int) -> Part:
        """``number``: of the part among all that all ranks compute. Targets become float ``(n, C)``."""
        x, y = part
        dense = y.clamp(min=0).float() if self.task == "multi" else _one_hot(y, self.num_classes)
        before = np.random.get_state()  # timm draws from numpy's own generator
        np.random.seed(np.random.SeedSequence([self.seed, step, number, 2]).generate_state(1))
        try:
            mixed, shares = self.mixup(x.clone(), dense)
        finally:
            np.random.set_state(before)
        if self.task == "multi":
            alone = (y[:, :1] >= 0) & (y.flip(0)[:, :1] >= 0)
            shares = torch.where(alone, shares, -1.0)  # an unread image spoils its pair
        return mixed, shares


def _one_hot(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """float32 ``(n, C)``; zeros where y is -1."""
    return F.one_hot(y.clamp(min=0), num_classes).float() * (y >= 0).float()[:, None]


def mixing_of(recipe: AnyRecipe, task: Task, num_classes: int) -> Mixing | None:
    if not mixes(recipe):
        return None
    mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=num_classes, multi_label=True)
    return Mixing(mixup, task, num_classes, recipe.seed)
