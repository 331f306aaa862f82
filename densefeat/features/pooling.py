"""Pooling of maps to vectors: average, maximum, generalised mean, or none."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from densefeat.errors import UsageError
from densefeat.store import split_pools

Pool = Callable[[torch.Tensor], torch.Tensor]


def _avg_pool(maps: torch.Tensor) -> torch.Tensor:
    """Average ``(N, C, H, W)`` to ``(N, C)``."""
    return maps.mean((2, 3))


def _max_pool(maps: torch.Tensor) -> torch.Tensor:
    """Take the maxima of ``(N, C, H, W)``: ``(N, C)``."""
    return maps.amax((2, 3))


def _gem_pool(maps: torch.Tensor, p: float = 3.0, eps: float = 1e-6) -> torch.Tensor:
    """Take the generalised mean, ``mean(max(x, eps)^p)^(1/p)``: ``(N, C, H, W)`` to ``(N, C)``.

    Source: Radenović et al., arXiv 1711.02512.
    """
    return maps.clamp(min=eps).pow(p).mean((2, 3)).pow(1 / p)


def _copy(maps: torch.Tensor) -> torch.Tensor:
    """Copy the maps, because later layers of a network may write into them."""
    return maps.clone()


_POOLS: dict[str, Pool] = {"avg": _avg_pool, "max": _max_pool, "gem": _gem_pool, "none": _copy}


def parse_pools(pool: str | Sequence[str]) -> dict[str, Pool]:
    """Parse ``"avg"``, ``"avg,max"`` or ``["gem:4", "none"]`` into functions by name; ``gem`` has the power 3, ``gem:P`` P."""
    specs = split_pools(pool)
    pools: dict[str, Pool] = {}
    if not specs:
        raise UsageError("pool []: give one or more of avg, max, gem, none")
    for spec in specs:
        name, _, power = spec.partition(":")
        if name not in _POOLS or (power and name != "gem") or name in pools:
            raise UsageError(f"pool {pool!r}: give one or more of avg, max, gem, none, each once (gem:4 for another power)")
        pools[name] = partial(_gem_pool, p=_parse_power(power)) if power else _POOLS[name]
    return pools


def _parse_power(power: str) -> float:
    try:
        value = float(power)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"pool 'gem:{power}': the power must be a positive number")
    return value
