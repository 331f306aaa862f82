"""Estimated closeness is within its error of the exact one, which does not depend on positions."""

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.search.vectors import _METRICS, check_metric, compute_closeness, estimate_closeness, prepare_vectors, to_product


@pytest.mark.parametrize("metric", _METRICS)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_approximate_is_within_its_error(metric: str, size: int, scale: float) -> None:
    generator = np.random.default_rng(0)
    values = (scale * (5 + generator.standard_normal((40, size)))).astype(np.float32)  # far from 0: rounding shows
    a, b = prepare_vectors(values[:20].copy(), metric), prepare_vectors(values[20:].copy(), metric)
    fast, error = estimate_closeness(a, b, metric)
    for i in range(20):
        true = [to_product(float(closeness), metric) for closeness in compute_closeness(b.rows, a.rows[i : i + 1], metric)]
        assert np.abs(fast[i] - true).max() <= error


def test_exact_agrees_with_plain_float64() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 30, 50)).astype(np.float32)
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    dot = (wide_x * wide_y).sum(1)
    cosine = dot / np.linalg.norm(wide_x, axis=1) / np.linalg.norm(wide_y, axis=1)
    for metric, expected in (("dot", dot), ("cosine", cosine), ("euclidean", -np.linalg.norm(wide_x - wide_y, axis=1))):
        got = compute_closeness(prepare_vectors(x.copy(), metric).rows, prepare_vectors(y.copy(), metric).rows, metric)
        np.testing.assert_allclose(got, expected, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("metric", _METRICS)
def test_equal_rows_are_equally_near_at_any_position(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.search.vectors._EXACT_VALUES", 500)  # several pieces
    generator = np.random.default_rng(0)
    rows = prepare_vectors(np.tile(generator.standard_normal((1, 77)).astype(np.float32), (50, 1)), metric).rows
    query = prepare_vectors(generator.standard_normal((1, 77)).astype(np.float32), metric).rows
    assert len(set(compute_closeness(rows, query, metric).tolist())) == 1


def test_rows_that_are_near_to_nothing() -> None:
    values = np.float32([[0, 0], [1, np.nan], [np.inf, 1], [3, 4]])
    cosine, dot = prepare_vectors(values.copy(), "cosine"), prepare_vectors(values.copy(), "dot")
    assert cosine.usable.tolist() == [False, False, False, True]
    assert dot.usable.tolist() == [True, False, False, True]  # zeros are as far from all, but somewhere
    np.testing.assert_allclose(cosine.rows, [[0, 0], [0, 0], [0, 0], [0.6, 0.8]])
    fast, _ = estimate_closeness(dot, dot, "dot")
    assert np.isneginf(fast).tolist() == [[False, True, True, False], [True] * 4, [True] * 4, [False, True, True, False]]


def test_float16_and_maps_are_compared_as_float32_vectors() -> None:
    maps = np.random.default_rng(0).standard_normal((5, 2, 3, 4)).astype(np.float16)
    prepared = prepare_vectors(maps, "dot")
    assert prepared.rows.dtype == np.float32
    np.testing.assert_array_equal(prepared.rows, maps.reshape(5, 24).astype(np.float32))


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="metric 'hamming': choose one of cosine, euclidean, dot"):
        check_metric("hamming")
