"""Maps to vectors: average, maximum, generalised mean, or none."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from densefeat.errors import UsageError

Pool = Callable[[torch.Tensor], torch.Tensor]


def _avg(maps: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` to ``(N, C)``."""
    return maps.mean((2, 3))


def _max(maps: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` to ``(N, C)``."""
    return maps.amax((2, 3))


def _gem(maps: torch.Tensor, p: float = 3.0, eps: float = 1e-6) -> torch.Tensor:
    """Generalised mean, ``mean(max(x, eps)^p)^(1/p)``: ``(N, C, H, W)`` to ``(N, C)`` (Radenović et al., arXiv 1711.02512)."""
    return maps.clamp(min=eps).pow(p).mean((2, 3)).pow(1 / p)


def _none(maps: torch.Tensor) -> torch.Tensor:
    """The maps, copied: what comes next in a network may write into them."""
    return maps.clone()


_POOLS: dict[str, Pool] = {"avg": _avg, "max": _max, "gem": _gem, "none": _none}


def parse_pools(pool: str | Sequence[str]) -> dict[str, Pool]:
    """``"avg"``, ``"avg,max"``, ``["gem:4", "none"]``: names (``gem`` with its power after a colon, 3 without) to functions."""
    given = pool_specs(pool)
    pools: dict[str, Pool] = {}
    if not given:
        raise UsageError("pool []: give one or more of avg, max, gem, none")
    for spec in given:
        name, _, power = spec.partition(":")
        if name not in _POOLS or (power and name != "gem") or name in pools:
            raise UsageError(f"pool {pool!r}: give one or more of avg, max, gem, none, each once (gem:4 for another power)")
        pools[name] = partial(_gem, p=_positive(power)) if power else _POOLS[name]
    return pools


def pool_specs(pool: str | Sequence[str]) -> list[str]:
    """``"avg,gem:4"`` or ``["avg", "gem:4"]`` as ``["avg", "gem:4"]``."""
    return [str(spec).strip() for spec in (pool.split(",") if isinstance(pool, str) else pool)]


def _positive(power: str) -> float:
    try:
        value = float(power)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"pool 'gem:{power}': the power must be a positive number")
    return value
