"""The head that reads some features of normalised layers."""

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.probing import matrices
from densefeat.probing.layers_head import LayersHead, normalize_layers

R = np.random.default_rng(0)
WIDTHS = (2, 1, 4)


def make_features(rows: int = 6) -> np.ndarray:
    return R.standard_normal((rows, 7)).astype(np.float32) * 100


def normalise_apart(x: np.ndarray) -> np.ndarray:
    layers = np.split(x.astype(np.float64), (2, 3), axis=1)
    norms = [np.sqrt((layer**2).sum(1, keepdims=True)) for layer in layers]
    return np.hstack([layer / np.where(norm > 0, norm, 1) for layer, norm in zip(layers, norms, strict=True)])


@pytest.mark.parametrize("values", [2**20, 8])
def test_layers_are_normalised_each_by_itself(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_PIECE_VALUES", values)
    x = make_features()
    x[2, 3:] = 0
    expected = normalise_apart(x)
    normalize_layers(x, WIDTHS)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert (x[2, 3:] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_outside_float32(scale: float) -> None:
    x = (make_features() * scale).astype(np.float32)
    expected = normalise_apart(x)
    normalize_layers(x, WIDTHS)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_scores(kind: type) -> None:
    weight, bias, kept = R.standard_normal((3, 2)).astype(np.float32), np.ones(3, np.float32), np.array([1, 6])
    head, x = LayersHead(WIDTHS, kept, weight, bias), make_features().astype(kind)
    before = x.copy()
    expected = normalise_apart(x)[:, kept] @ weight.T + bias
    scores = head.scores(x)
    assert (scores.dtype, scores.shape) == (np.float32, (6, 3))
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(x, before)
    numbers = LayersHead(WIDTHS, kept, weight[:1], bias[:1], squeeze=True).scores(x)
    np.testing.assert_allclose(numbers, expected[:, 0], rtol=2e-5, atol=1e-6)


def test_other_features_are_refused() -> None:
    head = LayersHead(WIDTHS, np.array([0]), np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    with pytest.raises(UsageError, match=r"features of shape \(6, 5\): this head takes shape \(rows, 7\)"):
        head.scores(make_features()[:, :5])
