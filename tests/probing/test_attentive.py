"""Attentive pooling in numpy against torch's attention, and wrong maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densefeat.errors import UsageError
from densefeat.probing import attentive
from densefeat.probing.attentive import AttentiveHead

R = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32)


def make_head() -> AttentiveHead:
    """Two queries on three channels, and three queries on five channels; four classes."""
    return AttentiveHead((draw(2, 3), draw(3, 5)), (draw(2, 2, 3), draw(3, 1, 5)), draw(4, 7), draw(4))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_are_torchs(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    head, maps = make_head(), [draw(6, 3, 4, 5).astype(dtype), draw(6, 5, 2, 2).astype(dtype)]
    pooled = []
    for x, queries, values in zip(maps, head.queries, head.values, strict=True):
        keys = torch.from_numpy(x.astype(np.float64)).flatten(2).transpose(1, 2)  # (n, positions, C)
        asked = torch.from_numpy(queries).double().expand(len(x), -1, -1)
        means = F.scaled_dot_product_attention(asked, keys, keys, scale=1.0)  # (n, M, C)
        pooled += [means[:, m] @ torch.from_numpy(values[m]).double().T for m in range(len(queries))]
    expected = torch.cat(pooled, 1).numpy() @ head.weight.T.astype(np.float64) + head.bias
    found = head.scores(maps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(attentive, "_PIECE_VALUES", 100)
    np.testing.assert_allclose(head.scores(maps), found, rtol=1e-6, atol=1e-6)
    assert head.scores([x[:0] for x in maps]).shape == (0, 4)


def test_a_query_of_zero_averages() -> None:
    maps = draw(5, 3, 4, 4)
    head = AttentiveHead((np.zeros((1, 3), np.float32),), (np.eye(3, dtype=np.float32)[None],), draw(2, 3), draw(2))
    expected = maps.mean((2, 3)) @ head.weight.T + head.bias
    np.testing.assert_allclose(head.scores([maps]), expected, rtol=1e-5, atol=1e-6)


def test_large_products_do_not_overflow() -> None:
    head = AttentiveHead((np.full((1, 1), 1e4, np.float32),), (np.ones((1, 1, 1), np.float32),), draw(2, 1), draw(2))
    maps = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(head.scores([maps]), 3 * head.weight.T + head.bias, rtol=1e-6)  # the maximum alone


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([(2, 3, 4, 4)], r"maps of shapes \(2, 3, 4, 4\): this head takes \(rows, C, H, W\) with C = 3, 5"),
        ([], "maps of shapes none"),
        ([(2, 3), (2, 5)], r"maps of shapes \(2, 3\), \(2, 5\): this head takes"),
        ([(2, 5, 4, 4), (2, 3, 4, 4)], "with C = 3, 5"),
        ([(2, 3, 4, 4), (1, 5, 4, 4)], "give as many rows of each"),
        ([(2, 3, 0, 4), (2, 5, 4, 4)], "and some positions"),
    ],
)
def test_other_maps(shapes: list[tuple[int, ...]], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make_head().scores([np.zeros(shape, np.float32) for shape in shapes])
