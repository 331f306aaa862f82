"""Many linear heads trained at once on the same features: one for each learning rate of a grid.

Source: DINOv2's linear evaluation (arXiv 2304.07193), with the numbers of the authors' ``dinov2/eval/linear.py``: heads that
start from a normal distribution of std 0.01 and bias 0, SGD of momentum 0.9 without weight decay, rates for 256 images a
batch, on a cosine to 0 from the first step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from densefeat.errors import UsageError
from densefeat.labels import Task
from densefeat.probing import ALL, LinearHead
from densefeat.training import World

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM, START_STD = 0.9, 0.01
_MAX_WEIGHTS = 2**31  # of all heads together


@dataclass
class ParallelHeads:
    """R heads of K classes for each candidate. Heads do not influence one another: each learns as it would alone.

    ``weights[name]``: ``(R, K, D + 1)``, the bias last; ``speeds``: SGD's momentum, of the same shape; ``rates``: ``(R,)``,
    the learning rates of the first step. All are the same on every rank.
    """

    task: Task
    weights: dict[str, torch.Tensor]
    speeds: dict[str, torch.Tensor]
    rates: torch.Tensor
    step: int = 0

    @classmethod
    def start(
        cls,
        sizes: Mapping[str, int],
        num_classes: int,
        task: Task,
        batch_size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "ParallelHeads":
        """Make heads with random weights. ``sizes``: D of each candidate. Raises UsageError for more than 2^31 weights."""
        limit_weights(len(RATES), num_classes, num_classes * sum(size + 1 for size in sizes.values()))
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, size in sizes.items():
            weight = torch.randn(len(RATES), num_classes, size + 1, generator=generator, dtype=torch.float64) * START_STD
            weight[:, :, -1] = 0
            weights[name] = weight.to(device, dtype)
        speeds = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        rates = torch.tensor(RATES, dtype=torch.float64) * (batch_size / 256)
        return cls(task, weights, speeds, rates)

    def learn(self, features: Mapping[str, torch.Tensor], y: torch.Tensor, batch_size: int, steps: int, world: World) -> None:
        """Take one of ``steps`` steps, with this rank's share of a batch of ``batch_size`` images.

        ``features``: ``(n, D)`` by column, or maps ``(n, D, H, W)``, which are averaged; none if this rank has no image.
        ``y``: int64 ``(n,)``, or bool ``(n, K)``. Missing images count as error 0.
        """
        rates = self.rates * cosine_decay(self.step, steps)
        inputs = self._select_inputs(features)
        for name, weight in self.weights.items():
            x = _append_one(inputs[name]).to(weight.dtype)
            gradient = self.gradient(weight, x, y) / batch_size
            if world.size > 1:
                dist.all_reduce(gradient)
            speed = self.speeds[name].mul_(MOMENTUM).add_(gradient)
            weight.sub_(speed * rates.to(weight.device, weight.dtype).view(-1, 1, 1))
        self.step += 1

    def _select_inputs(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Select the vectors that heads are for, and add those of all columns side by side if there are heads for them."""
        if not features:
            return {name: weight.new_zeros(0, weight.shape[2] - 1) for name, weight in self.weights.items()}
        own = {name: features[name] for name in self.weights if name != ALL}
        vectors = {name: x.mean((2, 3)) if x.ndim == 4 else x for name, x in own.items()}
        return vectors | ({ALL: torch.cat(list(vectors.values()), 1)} if ALL in self.weights else {})

    def gradient(self, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Compute the gradient of the loss summed over images, ``(R, K, D + 1)``.

        The loss is cross entropy; for multi-label targets, the binary cross entropy summed over classes.
        """
        heads, classes, size = weight.shape
        logits = (x @ weight.view(-1, size).T).view(len(x), heads, classes)
        if self.task == "multi":
            error = logits.sigmoid_() - y[:, None, :].to(logits.dtype)
        else:
            error = logits.softmax(2)
            error.scatter_add_(2, y[:, None, None].expand(-1, heads, 1), error.new_full((len(x), heads, 1), -1))
        return (error.flatten(1).T @ x).view(heads, classes, size)

    def linear(self, name: str, rate: int) -> LinearHead:
        """Return the head of a candidate for the learning rate at a position of the grid."""
        weight = self.weights[name][rate].float().cpu().numpy()
        return LinearHead(np.ascontiguousarray(weight[:, :-1]), weight[:, -1].copy())

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights, "speeds": self.speeds}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.step = saved["step"]
        for own, kept in ((self.weights, saved["weights"]), (self.speeds, saved["speeds"])):
            for name, values in own.items():
                values.copy_(kept[name])


def cosine_decay(step: int, steps: int) -> float:
    """Return the factor on the learning rates at a step, from 1 at the first to 0 after the last."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def limit_weights(heads: int, num_classes: int, weights: int) -> None:
    """Raise UsageError if ``heads`` of so many weights each are more than 2^31 weights together."""
    if heads * weights > _MAX_WEIGHTS:
        raise UsageError(
            f"{heads} heads of {num_classes:,} classes for each block are {heads * weights:,} weights: probe fewer blocks"
        )


def _append_one(x: torch.Tensor) -> torch.Tensor:
    """Append a column of ones to ``(n, D)``: its weight is the bias."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
