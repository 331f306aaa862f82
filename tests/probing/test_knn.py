"""Votes of neighbours against loops over sorted cosines."""

import tracemalloc

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets, Task
from densefeat.probing import knn
from densefeat.probing.knn import KnnHead, _count_votes, _normalize
from densefeat.probing.protocols import fit_head
from support.toy_data import make_data, validation_mask


def vote_naively(base: np.ndarray, targets: Targets, x: np.ndarray, k: int) -> np.ndarray:
    """Votes, shares or means, row by row in float64."""
    base = base.astype(np.float64) / np.linalg.norm(base.astype(np.float64), axis=1, keepdims=True)
    out = []
    for row in x.astype(np.float64):
        cosine = base @ row / np.linalg.norm(row)
        near = np.argsort(-cosine)[:k]
        weights = np.exp(cosine[near] / 0.07)
        values = targets.values[near]
        if targets.task == "single":
            values = values[:, None] == np.arange(len(targets.classes))
        out.append((weights @ values) / weights.sum())
    return np.array(out)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("tile", [knn._TILE_VALUES, 1000, 100])
def test_scores(monkeypatch: pytest.MonkeyPatch, task: Task, dtype: str, tile: int) -> None:
    monkeypatch.setattr(knn, "_TILE_VALUES", tile)
    x, targets = make_data(task)
    features = x.copy()
    _normalize(features)
    features = features.astype(dtype)
    fit = KnnHead(features, targets, 10).scores(3 * x[:50])
    assert fit.dtype == np.float32
    shares = {"single": np.exp(fit), "multi": fit + 0.5, "regression": fit}[task]
    expected = np.maximum(vote_naively(features, targets, x[:50], 10), knn.LEAST_SHARE if task == "single" else -np.inf)
    np.testing.assert_allclose(
        shares, expected, rtol=0.2 if dtype == "float16" else 2e-3, atol=1e-2 if dtype == "float16" else 1e-5
    )


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_choice_of_k(task: Task) -> None:
    x, targets = make_data(task)
    val = validation_mask(400)
    fit = fit_head("knn", x.copy(), targets, val)
    assert [setting["k"] for setting in fit.tried] == [10, 20, 100, 200]
    expected = {k: vote_naively(x[~val], targets.take(~val), x[val], k) for k in knn.NEIGHBOURS}
    if task == "single":
        hits = {k: 100 * (votes.argmax(1) == targets.values[val]).mean() for k, votes in expected.items()}
        assert {setting["k"]: setting["top1"] for setting in fit.tried} == pytest.approx(hits)
        assert fit.chosen["k"] == max(hits, key=hits.get)
    k = fit.chosen["k"]
    shares = {"single": np.exp(fit.val_scores), "multi": fit.val_scores + 0.5, "regression": fit.val_scores}[task]
    np.testing.assert_allclose(shares, expected[k], rtol=1e-3, atol=1e-4)
    assert (len(fit.head.features), fit.head.k) == (400, k)
    after = vote_naively(x, targets, x[:20], k)
    scores = fit.head.scores(x[:20])
    np.testing.assert_allclose(
        {"single": np.exp(scores), "multi": scores + 0.5, "regression": scores}[task], after, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("rows", "counts"), [(8, [6]), (30, [10, 20])])
def test_few_rows(rows: int, counts: list[int]) -> None:
    x, targets = make_data("single", rows, classes=2)
    assert [setting["k"] for setting in fit_head("knn", x, targets, validation_mask(rows)).tried] == counts


def test_memory_of_votes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_TILE_VALUES", 2**16)
    generator = np.random.default_rng(0)
    near, weights = generator.integers(0, 200, (2000, 200)), generator.random((2000, 200))
    labels = generator.random((200, 100)) < 0.1
    tracemalloc.start()
    try:
        fit = _count_votes(near, weights, Targets("multi", tuple(map(str, range(100))), labels))
        assert tracemalloc.get_traced_memory()[1] < 8e6  # at once: 2000 * 200 * 100 bytes, and more as numbers
    finally:
        tracemalloc.stop()
    expected = (weights[7] / weights[7].sum()) @ labels[near[7]] - 0.5
    np.testing.assert_allclose(fit[7], expected, atol=1e-6)


def test_rows_of_zeros() -> None:
    x, targets = make_data("single")
    x[5] = 0
    fit = fit_head("knn", x.copy(), targets, validation_mask(400))
    assert np.isfinite(fit.head.scores(np.zeros((2, 12), np.float32))).all()
    assert not fit.head.features[np.linalg.norm(fit.head.features, axis=1) < 0.5].any()


def test_no_queries_and_other_features() -> None:
    x, targets = make_data("single")
    head = KnnHead(x, targets, 10)
    assert head.scores(x[:0]).shape == (0, 4)
    assert KnnHead(x, make_data("regression")[1], 10).scores(x[:0]).shape == (0,)
    with pytest.raises(UsageError, match=r"takes shape \(rows, 12\)"):
        head.scores(x[:, :5])
