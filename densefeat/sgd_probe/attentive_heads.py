"""Many attentive heads trained at once on the same maps: one for each learning rate of a grid.

What a head computes: :class:`densefeat.probing.AttentiveHead`. Source: Psomas et al., arXiv 2506.10178: queries start from a
normal distribution of std 0.02, values are a linear map without bias, no weight decay, a cosine to 0. Their optimizer is LARS
on thousands of steps; here it is Adam (AIM, arXiv 2401.08541, has AdamW), which needs fewer, with a grid of rates of our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from densefeat.labels import Task
from densefeat.probing import AttentiveHead
from densefeat.sgd_probe.parallel_heads import START_STD, cosine_decay, limit_weights
from densefeat.training import World

ATTENTIVE_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
QUERIES = 8
BETAS, _EPSILON = (0.9, 0.999), 1e-8
_QUERY_STD = 0.02
_WEIGHT = "weight"

_Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ChannelMoments:
    """The mean of each channel of a column's maps and the inverse of its deviation, 0 for a constant one: float32 ``(C,)``."""

    mean: torch.Tensor
    scale: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "ChannelMoments":
        return ChannelMoments(self.mean.to(device, dtype), self.scale.to(device, dtype))


@dataclass
class AttentiveHeads:
    """R heads of K classes for each candidate. Heads do not influence one another: each learns as it would alone.

    ``candidates``: their columns by name. ``parameters[name]``: queries ``(R, M, C)`` and values ``(R, M, d, C)`` of each
    column, and ``weight`` ``(R, K, Σ M·d + 1)``, the bias last; ``averages``, ``squares``: Adam's, of the same shapes;
    ``moments``: by column. All are the same on every rank.
    """

    task: Task
    candidates: dict[str, tuple[str, ...]]
    moments: dict[str, ChannelMoments]
    parameters: dict[str, _Parameters]
    averages: dict[str, _Parameters]
    squares: dict[str, _Parameters]
    rates: torch.Tensor
    step: int = 0

    @classmethod
    def start(
        cls,
        candidates: Mapping[str, tuple[str, ...]],
        moments: Mapping[str, ChannelMoments],
        num_classes: int,
        task: Task,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "AttentiveHeads":
        """Make heads with random weights. Raises UsageError for more than 2^31 of them."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {name: len(each.mean) for name, each in moments.items()}
        rates = len(ATTENTIVE_RATES)
        limit_weights(rates, num_classes, sum((num_classes + sizes[name]) * sizes[name] for name in sizes))
        parameters: dict[str, _Parameters] = {}
        for name, columns in candidates.items():
            own: _Parameters = {}
            pooled = 0
            for column in columns:
                size = sizes[column]
                queries = min(QUERIES, size)
                shape = (rates, queries, size // queries, size)
                own[_queries(column)] = torch.randn(rates, queries, size, generator=generator) * _QUERY_STD
                own[_values(column)] = (2 * torch.rand(shape, generator=generator) - 1) * size**-0.5  # as nn.Linear starts
                pooled += queries * (size // queries)
            weight = torch.randn(rates, num_classes, pooled + 1, generator=generator) * START_STD
            weight[:, :, -1] = 0
            parameters[name] = {key: value.to(device, dtype) for key, value in (own | {_WEIGHT: weight}).items()}
        averages, squares = ({name: _zeros_like(own) for name, own in parameters.items()} for _ in range(2))
        placed = {name: each.to(device, dtype) for name, each in moments.items()}
        grid = torch.tensor(ATTENTIVE_RATES, dtype=torch.float64)
        return cls(task, dict(candidates), placed, parameters, averages, squares, grid)

    def learn(self, features: Mapping[str, torch.Tensor], y: torch.Tensor, batch_size: int, steps: int, world: World) -> None:
        """Take one of ``steps`` steps of Adam, with this rank's share of a batch of ``batch_size`` images.

        ``features``: maps ``(n, C, H, W)`` by column, none if this rank has no image; ``y``: int64 ``(n,)``, or bool
        ``(n, K)``. Missing images count as error 0.
        """
        rates = self.rates * cosine_decay(self.step, steps)
        self.step += 1
        for name, own in self.parameters.items():
            gradients = self.gradients(name, features, y) if features else _zeros_like(own)
            for key, value in own.items():
                gradient = gradients[key] / batch_size
                if world.size > 1:
                    dist.all_reduce(gradient)
                average = self.averages[name][key].lerp_(gradient, 1 - BETAS[0])
                square = self.squares[name][key].lerp_(gradient.square(), 1 - BETAS[1])
                root = (square / (1 - BETAS[1] ** self.step)).sqrt_().add_(_EPSILON)
                rate = (rates / (1 - BETAS[0] ** self.step)).to(value.device, value.dtype)
                value.sub_(rate.view(-1, *[1] * (value.ndim - 1)) * average / root)

    def gradients(self, name: str, features: Mapping[str, torch.Tensor], y: torch.Tensor) -> _Parameters:
        """Compute the gradients of the loss summed over images and heads.

        The loss is cross entropy; for multi-label targets, the binary cross entropy summed over classes.
        """
        leaves = {key: value.detach().requires_grad_() for key, value in self.parameters[name].items()}
        with torch.enable_grad():
            scores = self._compute_scores(name, leaves, features)
            if self.task == "multi":
                wanted = y[:, None, :].expand_as(scores).to(scores.dtype)
                loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
            else:
                loss = F.cross_entropy(scores.flatten(0, 1), y.repeat_interleave(scores.shape[1]), reduction="sum")
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    @torch.no_grad()
    def scores(self, name: str, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score maps ``(n, C, H, W)`` by the heads of all rates: ``(n, R, K)``."""
        return self._compute_scores(name, self.parameters[name], features)

    def _compute_scores(self, name: str, own: _Parameters, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        pooled = [self._pool(own, column, features[column]) for column in self.candidates[name]]
        weight = own[_WEIGHT]
        return torch.einsum("nrd,rkd->nrk", torch.cat(pooled, 2), weight[:, :, :-1]) + weight[:, :, -1]

    def _pool(self, own: _Parameters, column: str, maps: torch.Tensor) -> torch.Tensor:
        """Pool ``(n, C, H, W)`` to ``(n, R, M·d)``.

        The means of the channels do not change the attention, and are subtracted after pooling.
        """
        x, moments = maps.flatten(2).to(own[_WEIGHT].dtype), self.moments[column]
        queries = self._scale_queries(own, column).flatten(0, 1).expand(len(x), -1, -1)  # matmul would copy the maps instead
        attention = torch.bmm(queries, x).softmax(2)
        means = (attention @ x.transpose(1, 2) - moments.mean) * moments.scale
        values = own[_values(column)]
        return torch.einsum("nrmc,rmdc->nrmd", means.unflatten(1, values.shape[:2]), values).flatten(2)

    def _scale_queries(self, own: _Parameters, column: str) -> torch.Tensor:
        queries = own[_queries(column)]
        return queries * (self.moments[column].scale * queries.shape[2] ** -0.5)

    def head(self, name: str, rate: int) -> AttentiveHead:
        """Return the head of a candidate for the learning rate at a position of the grid."""
        own = {key: value.double() for key, value in self.parameters[name].items()}
        queries, values, shifts = [], [], []
        for column in self.candidates[name]:
            moments = self.moments[column]
            scaled = own[_values(column)][rate] * moments.scale.double()
            queries.append(self._scale_queries(own, column)[rate].float().cpu().numpy())
            values.append(scaled.float().cpu().numpy())
            shifts.append((scaled @ moments.mean.double()).flatten())
        weight = own[_WEIGHT][rate]
        bias = weight[:, -1] - weight[:, :-1] @ torch.cat(shifts)
        return AttentiveHead(
            tuple(queries), tuple(values), weight[:, :-1].float().contiguous().cpu().numpy(), bias.float().cpu().numpy()
        )

    def state_dict(self) -> dict[str, Any]:
        moments = {name: {"mean": each.mean, "scale": each.scale} for name, each in self.moments.items()}
        return {
            "step": self.step,
            "parameters": self.parameters,
            "averages": self.averages,
            "squares": self.squares,
            "moments": moments,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.step = saved["step"]
        for own, kept in (
            (self.parameters, saved["parameters"]), (self.averages, saved["averages"]), (self.squares, saved["squares"]),
            ({name: vars(each) for name, each in self.moments.items()}, saved["moments"]),
        ):  # fmt: skip
            for name, values in own.items():
                for key, value in values.items():
                    value.copy_(kept[name][key])


def _queries(column: str) -> str:
    return f"queries of {column}"


def _values(column: str) -> str:
    return f"values of {column}"


def _zeros_like(parameters: _Parameters) -> _Parameters:
    return {key: torch.zeros_like(value) for key, value in parameters.items()}
