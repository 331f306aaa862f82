"""Mixed images, and the weights of rare classes in the loss."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup

from densefeat.finetuning.recipe import FineTuning
from densefeat.labels import Task
from densefeat.training import MicroBatch

_MAX_WEIGHT = 100.0  # of a rare class, relative to others


@dataclass(frozen=True)
class Mixing:
    """A function that mixes images by timm's mixup or cutmix: the first with the last of the micro-batch, and so on.

    The random numbers depend on seed, step and micro-batch alone.
    """

    mixup: Mixup
    task: Task
    num_classes: int
    seed: int

    @classmethod
    def from_recipe(cls, recipe: FineTuning, task: Task, num_classes: int) -> "Mixing":
        mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=num_classes, multi_label=True)
        return cls(mixup, task, num_classes, recipe.seed)

    def __call__(self, micro_batch: MicroBatch, step: int, number: int) -> MicroBatch:
        """Mix the images; targets become float ``(n, C)``. ``number``: of the micro-batch in the step, over all ranks."""
        x, y = micro_batch
        dense = y.clamp(min=0).float() if self.task == "multi" else _one_hot(y, self.num_classes)
        before = np.random.get_state()  # timm draws from numpy's global generator
        np.random.seed(np.random.SeedSequence([self.seed, step, number, 2]).generate_state(1))
        try:
            mixed, shares = self.mixup(x.clone(), dense)
        finally:
            np.random.set_state(before)
        if self.task == "multi":
            readable = (y[:, :1] >= 0) & (y.flip(0)[:, :1] >= 0)
            shares = torch.where(readable, shares, -1.0)  # an image that could not be read spoils its pair
        return mixed, shares


def _one_hot(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return float32 ``(n, C)``; zeros where y is -1."""
    return F.one_hot(y.clamp(min=0), num_classes).float() * (y >= 0).float()[:, None]


def class_weights(task: Task, labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return the weight of each class in the loss, float32 ``(C,)``.

    With one class an image, n / (C · images of the class); with several labels, images without the label / images with it.
    """
    if task == "multi":
        with_label = (labels > 0).sum(0)
        weights = (len(labels) - with_label) / np.maximum(with_label, 1)
        return torch.from_numpy(weights.clip(1 / _MAX_WEIGHT, _MAX_WEIGHT)).float()
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy((len(labels) / (num_classes * np.maximum(counts, 1))).clip(max=_MAX_WEIGHT)).float()
