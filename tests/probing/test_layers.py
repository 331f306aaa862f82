"""The fit of the protocol layers: what is kept, by which setting, and the head that is made of it."""

from functools import cache

import numpy as np
import pytest
from sklearn.linear_model import MultiTaskLasso

from densefeat.errors import UsageError
from densefeat.labels import Targets, Task
from densefeat.probing import layer_selection, layers_head
from densefeat.probing.column_layers import Layer
from densefeat.probing.fitting import encode_targets
from densefeat.probing.layer_selection import PENALTIES, RESAMPLES, SHARES, keep_features
from densefeat.probing.layers import LayersFit, count_layer_settings, fit_layers
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.metrics import MAIN, compute_metrics
from support.toy_data import make_data, validation_mask

# block1 is noise, block2 has the features that predict
LAYERS = [
    Layer("block1", "input", 10),
    Layer("block1", "layer 1", 5),
    Layer("block2", "input", 12),
    Layer("block2", "layer 1", 8),
    Layer("block3", "all", 5),
]
WIDTHS = [layer.width for layer in LAYERS]
TASKS: list[Task] = ["single", "multi", "regression"]


def make_features(task: Task, rows: int = 400) -> tuple[np.ndarray, Targets]:
    useful, targets = make_data(task, rows)
    x = np.random.default_rng(5).standard_normal((rows, 40)).astype(np.float32)
    x[:, 15:27] = useful
    return x, targets


def fit_again(task: Task, seed: int = 0, groups: int = 400) -> tuple[LayersFit, list[int]]:
    x, targets = make_features(task)
    done: list[int] = []
    return fit_layers(x, targets, validation_mask(400), LAYERS, np.arange(400) % groups, seed, done.append), done


@cache
def fit(task: Task) -> LayersFit:
    return fit_again(task)[0]


@pytest.mark.parametrize("task", TASKS)
def test_useful_layers_are_found(task: Task) -> None:
    found = fit(task)
    records = {(entry["column"], entry["layer"]): entry for entry in found.told["by_layer"]}
    assert list(records) == [(layer.column, layer.name) for layer in LAYERS]
    assert max(records.values(), key=lambda entry: entry["relevance"])["layer"] == "input"
    useful = records["block2", "input"]
    assert useful["relevance"] > 0.5
    low, high = useful["relevance_interval"]
    assert 0.3 < low <= high <= 1
    assert sum(entry["kept"] for entry in records.values()) == found.told["kept"]
    for name in ("share", "relevance"):
        assert sum(entry[name] for entry in records.values()) == pytest.approx(1)


@pytest.mark.parametrize("task", TASKS)
def test_setting_is_the_best_on_the_validation_rows(task: Task) -> None:
    x, targets = make_features(task)
    val = validation_mask(400)
    found = fit(task).fit
    own = compute_metrics(targets.take(val), found.val_scores)[MAIN[task]]
    (chosen,) = (tried for tried in found.tried if found.chosen.items() <= tried.items())
    assert own == pytest.approx(chosen[MAIN[task]])
    rated = [tried[MAIN[task]] if task == "regression" else -tried["log_loss"] for tried in found.tried]
    assert max(rated) == (chosen[MAIN[task]] if task == "regression" else -chosen["log_loss"])
    assert found.head.scores(_read(x, fit(task).columns)).shape == ((400,) if task == "regression" else (400, 4))
    assert {tried["penalty"] for tried in found.tried} <= set(PENALTIES)
    assert {tried["share"] for tried in found.tried} <= set(SHARES)
    assert max(tried["features"] for tried in found.tried) == 20


def _read(x: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
    """The features of some columns side by side."""
    column_of = np.repeat([layer.column for layer in LAYERS], WIDTHS)
    return x[:, np.isin(column_of, columns)]


@pytest.mark.parametrize("task", TASKS)
def test_selection_as_by_scikit_learn(task: Task) -> None:
    """The features that are kept are those with the longest rows in a fit of the training rows alone."""
    x, targets = make_features(task)
    found, train = fit(task), ~validation_mask(400)
    layers_head.normalize_layers(x, WIDTHS)
    y = encode_targets(targets)[train]
    lasso = MultiTaskLasso(found.told["absolute_penalty"], max_iter=100_000, tol=1e-8).fit(x[train].astype(np.float64), y)
    relevance = np.linalg.norm(lasso.coef_, axis=0)
    largest = np.linalg.norm((x[train] - x[train].mean(0)).T @ (y - y.mean(0)), axis=1).max() / np.count_nonzero(train)
    assert found.told["absolute_penalty"] == pytest.approx(found.fit.chosen["penalty"] * largest, rel=1e-4)
    starts = {"block1": 0, "block2": 15, "block3": 35}
    kept = np.sort([starts[name] + c for name, channels in found.told["channels"].items() for c in channels])
    least = np.sort(relevance)[-len(kept)]
    assert (relevance[kept] >= 0.98 * least).all()
    own = np.array([entry["relevance"] for entry in found.told["by_layer"]])
    sums = np.add.reduceat(relevance, np.cumsum(WIDTHS) - WIDTHS)
    np.testing.assert_allclose(own, sums / sums.sum(), atol=0.01)


def test_head_reads_the_columns_with_kept_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.probing.layers.SHARES", (0.1, 0.2))
    monkeypatch.setattr("densefeat.probing.layers.PENALTIES", (0.1,))
    x, _ = make_features("single")
    found, _ = fit_again("single")
    head = found.fit.head
    assert isinstance(head, LayersHead)
    channels = found.told["channels"]
    assert tuple(channels) == found.columns
    assert head.widths == tuple(layer.width for layer in LAYERS if layer.column in found.columns)
    whole = x.copy()
    layers_head.normalize_layers(whole, WIDTHS)
    starts = {"block1": 0, "block2": 15, "block3": 35}
    kept = [starts[name] + channel for name in found.columns for channel in channels[name]]
    expected = whole[:, kept] @ head.weight.T + head.bias
    np.testing.assert_allclose(head.scores(_read(x, found.columns)), expected, rtol=1e-4, atol=1e-5)


def test_the_same_for_the_same_seed() -> None:
    first, (again, done), (other, _) = fit("single"), fit_again("single"), fit_again("single", seed=1)
    assert first.told == again.told
    np.testing.assert_array_equal(first.fit.val_scores, again.fit.val_scores)
    assert first.told["channels"] == other.told["channels"]
    assert first.told["by_layer"] != other.told["by_layer"]
    assert sum(done) == count_layer_settings("single")


def test_rows_of_a_group_are_drawn_together() -> None:
    groups = np.repeat([3, 1, 2, 7], [10, 20, 5, 5])
    for drawn in layer_selection._draw_resamples(groups, 0):
        counts = np.bincount(drawn, minlength=40)
        for group in np.unique(groups):
            assert len(np.unique(counts[groups == group])) == 1
        assert (np.diff(drawn) >= 0).all()
    assert len(list(layer_selection._draw_resamples(groups, 0))) == RESAMPLES


def test_rows_of_a_resample_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_selection, "_MOST_ROWS", 100)
    assert {len(drawn) for drawn in layer_selection._draw_resamples(np.arange(400), 0)} == {100}


def test_one_group_cannot_be_resampled() -> None:
    told = fit_again("regression", groups=1)[0].told
    assert told["resamples"] == {"number": 0, "rows": 0, "agreement": None}
    assert all(entry["relevance_interval"] is None and entry["share_interval"] is None for entry in told["by_layer"])


def test_what_is_kept() -> None:
    relevance = np.array([0, 3.0, 1, 3, 0])
    assert [keep_features(relevance, count).tolist() for count in (1, 2, 3, 4, 5)] == [
        [1], [1, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2, 3, 4],
    ]  # fmt: skip
    assert keep_features(np.zeros(3), 2).tolist() == [0]


def test_constant_features() -> None:
    """Nothing can be learnt from them, but nothing breaks."""
    _, targets = make_data("single")
    x = np.ones((400, 40), np.float32)
    found = fit_layers(x, targets, validation_mask(400), LAYERS, np.arange(400), 0, lambda _: None)
    assert np.isfinite(found.fit.val_scores).all()
    assert sum(entry["relevance"] for entry in found.told["by_layer"]) == pytest.approx(0)


def test_bad_features_are_refused() -> None:
    x, targets = make_features("single")
    x[3, 2] = np.nan
    with pytest.raises(UsageError, match="1 of 400 rows of features have NaN or infinite values, row 3 first"):
        fit_layers(x, targets, validation_mask(400), LAYERS, np.arange(400), 0, lambda _: None)
