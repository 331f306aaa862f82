"""The loss of a training step: cross entropy over classes, or binary cross entropy for each of several labels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from densefeat.labels import Task


@dataclass(frozen=True)
class Loss:
    """A loss with its weights: ``(C,)`` by class; for several labels, the weight of a label that is present; None: 1."""

    task: Task
    num_classes: int
    smoothing: float
    weights: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the sum over images, ``()``, for logits ``(n, C)``; an image without a label adds 0.

        y: int64 ``(n,)``, -1 for no label; for several labels ``(n, C)``, a row of -1 for no label; or the shares of all
        classes in mixed images: float ``(n, C)``, a row sums to 0 for no label.
        """
        if self.task == "multi":
            return self._binary_cross_entropy(logits, y)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        if not y.is_floating_point():
            return F.cross_entropy(
                logits, y, weights, ignore_index=-1, reduction="sum", label_smoothing=self.smoothing
            )  # fmt: skip
        smooth = y * (1 - self.smoothing) + y.sum(1, keepdim=True) * (self.smoothing / self.num_classes)
        return F.cross_entropy(logits, smooth.to(logits.dtype), weights, reduction="sum")

    def _binary_cross_entropy(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the binary cross entropy, averaged over labels and summed over images."""
        y = y.to(logits.dtype)
        labelled = (y >= 0).to(logits.dtype)
        smooth = y.clamp(min=0) * (1 - self.smoothing) + self.smoothing / 2
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, smooth, labelled, reduction="sum", pos_weight=weights)
        return losses / self.num_classes

    @property
    def chance_level(self) -> float:
        """The loss of guessing."""
        return math.log(2 if self.task == "multi" else max(self.num_classes, 2))

    def hits(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Count the images with the right class; for several labels, sum the share of right labels of each image."""
        if self.task == "multi":
            return (((logits > 0) == (y > 0)) & (y >= 0)).sum() / self.num_classes
        return (logits.argmax(1) == y).sum()

    def count(self, y: torch.Tensor) -> torch.Tensor:
        """Count the images with a label."""
        return (y >= 0).sum() if y.ndim == 1 else (y[:, 0] >= 0).sum()
