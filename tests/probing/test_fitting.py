"""Scores of a linear head, in pieces."""

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.probing import fitting
from densefeat.probing.fitting import LinearHead


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_scores(monkeypatch: pytest.MonkeyPatch, dtype: str, rows: int) -> None:
    monkeypatch.setattr(fitting, "_PIECE_VALUES", 30)
    generator = np.random.default_rng(0)
    head = LinearHead(generator.normal(size=(3, 4)).astype(np.float32), generator.normal(size=3).astype(np.float32))
    x = generator.normal(size=(rows, 4)).astype(dtype)
    scores = head.scores(x)
    assert (scores.dtype, scores.shape) == (np.float32, (rows, 3))
    np.testing.assert_allclose(scores, x.astype(np.float64) @ head.weight.T + head.bias, rtol=1e-4, atol=1e-5)
    one = LinearHead(head.weight[:1], head.bias[:1], squeeze=True).scores(x)
    assert one.shape == (rows,)
    np.testing.assert_allclose(one, scores[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", [np.zeros((2, 5)), np.zeros(4), np.zeros((2, 4, 1))], ids=lambda x: str(x.shape))
def test_features_of_another_shape(x: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"this head takes shape \(rows, 4\)"):
        LinearHead(np.zeros((3, 4), np.float32), np.zeros(3, np.float32)).scores(x)
