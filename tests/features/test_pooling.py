"""Pools against their definitions."""

import pytest
import torch

from densefeat import UsageError
from densefeat.features.pooling import parse_pools

MAPS = torch.rand(2, 3, 5, 4) * 2 - 0.5


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("avg", MAPS.flatten(2).sum(2) / 20),
        ("max", MAPS.flatten(2).sort(2).values[..., -1]),
        ("gem", MAPS.clamp(min=1e-6).flatten(2).pow(3).mean(2) ** (1 / 3)),
        ("gem:5.5", MAPS.clamp(min=1e-6).flatten(2).pow(5.5).mean(2) ** (1 / 5.5)),
        ("none", MAPS),
    ],
)
def test_definitions(pool: str, expected: torch.Tensor) -> None:
    ((name, function),) = parse_pools(pool).items()
    assert name == pool.partition(":")[0]
    torch.testing.assert_close(function(MAPS), expected)


def test_several() -> None:
    assert list(parse_pools("max,avg")) == ["max", "avg"]
    assert list(parse_pools(["gem:2", "none"])) == ["gem", "none"]


@pytest.mark.parametrize(
    ("pool", "match"),
    [
        ("mean", "pool 'mean': give one or more of avg, max, gem, none"),
        ("", "pool ''"),
        ("avg,avg", "each once"),
        ("avg:3", "pool 'avg:3'"),
        ("gem:0", "'gem:0': the power must be a positive number"),
        ("gem:x", "'gem:x': the power"),
        ("gem:inf", "'gem:inf': the power"),
        ([], r"pool \[\]: give one or more"),
    ],
)
def test_pools_that_do_not_exist(pool, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        parse_pools(pool)
