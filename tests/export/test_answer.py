"""The heads of probes as modules: the same numbers as in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from densefeat.certainty import OutlierDetector, fit_outliers
from densefeat.errors import UsageError, WeightsError
from densefeat.export.answer import LogitsAnswer, ProbeAnswer, answer_probe_in_numpy
from densefeat.export.head_modules import make_head_module
from densefeat.export.outlier_module import OutlierModule
from densefeat.labels.targets import Targets
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.fitting import LinearHead
from densefeat.probing.knn import KnnHead
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.probe_file import Probe

CLASSES = ("ant", "bee", "cow")
WIDTHS = {"block1": 5, "stages.2": 7}
KEPT = np.array([1, 6, 7, 11])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def unit(rows: int) -> np.ndarray:
    values = draw(rows, 12)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def columns(rows: int = 6, *sides: int) -> dict[str, np.ndarray]:
    """Features with a row of zeros, which has no direction."""
    values = {name: draw(rows, width, *sides) for name, width in WIDTHS.items()}
    for value in values.values():
        value[-1] = 0
    return values


SPARSE = draw(3, 12)
SPARSE[:, [0, 5, 6]] = 0
PROBES: dict[str, tuple[Any, tuple[str, ...], Any]] = {
    "linear": ("single", CLASSES, LinearHead(draw(3, 12), draw(3))),
    "sparse": ("multi", CLASSES, LinearHead(SPARSE, draw(3))),
    "nothing": ("single", CLASSES, LinearHead(np.zeros_like(SPARSE), draw(3))),
    "numbers": ("regression", (), LinearHead(draw(1, 12), draw(1), True)),
    "layers": ("single", CLASSES, LayersHead((2, 3, 3, 4), KEPT, draw(3, 4), draw(3))),
    "numbers by layers": ("regression", (), LayersHead((2, 3, 3, 4), KEPT, draw(1, 4), draw(1), True)),
    "neighbours": ("single", CLASSES, KnnHead(unit(30), Targets("single", CLASSES, np.arange(30) % 3), 7)),
    "labels of neighbours": ("multi", CLASSES, KnnHead(unit(30).astype(np.float16), Targets("multi", CLASSES, draw(30, 3) > 0), 7)),
    "numbers of neighbours": ("regression", (), KnnHead(unit(30), Targets("regression", (), draw(30).astype(np.float64)), 7, 0.2)),
    "attentive": ("single", CLASSES, AttentiveHead((draw(2, 5), draw(1, 7)), (draw(2, 3, 5), draw(1, 4, 7)), draw(3, 10), draw(3))),
}  # fmt: skip


def answer(probe: Probe, values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The answer of the module, which is given the channels alone that it reads."""
    module = ProbeAnswer(probe, WIDTHS)
    return module({name: torch.from_numpy(values[name][:, channels]) for name, channels in module.reads.items()})


@pytest.mark.parametrize("kind", PROBES)
def test_the_same_answer(kind: str) -> None:
    task, classes, head = PROBES[kind]
    probe, values = Probe(task, classes, tuple(WIDTHS), {}, head), columns(6, *([4, 3] if kind == "attentive" else []))
    found, expected = answer(probe, values), answer_probe_in_numpy(probe, values)
    names = ["value"] if task == "regression" else ["scores", "probabilities"] + ["label"] * (task == "single")
    assert sorted(found) == sorted(expected) == sorted([*names, "features"])
    scores = probe.scores(values)
    np.testing.assert_array_equal(expected["value" if task == "regression" else "scores"], scores)
    for name, value in expected.items():
        assert found[name].dtype == (torch.int64 if name == "label" else torch.float32)
        np.testing.assert_allclose(found[name].numpy(), value, rtol=2e-5, atol=2e-6, err_msg=name)
    if task == "single":
        np.testing.assert_allclose(expected["probabilities"], softmax(scores, axis=1), rtol=1e-5)
        np.testing.assert_array_equal(expected["label"], scores.argmax(1))


def test_what_heads_read() -> None:
    reads = {kind: make_head_module(PROBES[kind][2], WIDTHS) for kind in ("sparse", "nothing", "layers", "attentive")}
    listed = {kind: {name: channels.tolist() for name, channels in head.reads.items()} for kind, head in reads.items()}
    assert listed["sparse"] == {"block1": [1, 2, 3, 4], "stages.2": [2, 3, 4, 5, 6]}
    assert listed["layers"] == {"block1": [0, 1], "stages.2": [0, 1, 2, 3, 4, 5, 6]}  # no feature of the second layer is kept
    assert listed["nothing"] == listed["attentive"] == {"block1": [0, 1, 2, 3, 4], "stages.2": [0, 1, 2, 3, 4, 5, 6]}
    assert {name: channels.tolist() for name, channels in reads["layers"].uses.items()} == {
        "block1": [1],
        "stages.2": [1, 2, 6],
    }
    assert make_head_module(LayersHead((5, 7), np.array([8]), draw(3, 1), draw(3)), WIDTHS).reads.keys() == {"stages.2"}


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (LinearHead(draw(3, 11), draw(3)), WeightsError, "reads 11 features, and its network makes 12: damaged"),
        (LayersHead((5, 8), KEPT, draw(3, 4), draw(3)), WeightsError, "reads 13 features"),
        (
            AttentiveHead((draw(2, 5), draw(1, 6)), (draw(2, 3, 5), draw(1, 4, 6)), draw(3, 10), draw(3)),
            WeightsError,
            r"\[5, 6\]",
        ),
        (
            KnnHead(np.zeros((2**23, 12), np.float16), Targets("single", CLASSES, np.zeros(2**23, np.int64)), 1),
            UsageError,
            "8,388,608 neighbours of 12 features is too large for a graph, which holds 256 MiB",
        ),
    ],
)
def test_heads_that_do_not_fit(head: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ProbeAnswer(Probe("single", CLASSES, tuple(WIDTHS), {}, head), WIDTHS)


def test_the_answer_of_a_classifier() -> None:
    logits = torch.from_numpy(draw(4, 3))
    found = LogitsAnswer("single")({"logits": logits})
    assert list(found) == ["scores", "probabilities", "label"]
    np.testing.assert_allclose(found["probabilities"], softmax(logits.numpy(), axis=1), rtol=1e-6)
    assert found["label"].tolist() == logits.argmax(1).tolist()
    multi = LogitsAnswer("multi")({"logits": logits})
    assert list(multi) == ["scores", "probabilities"]
    np.testing.assert_allclose(multi["probabilities"], 1 / (1 + np.exp(-logits.numpy())), rtol=1e-6)


@pytest.fixture(scope="module")
def detector() -> OutlierDetector:
    train = {name: draw(120, width) for name, width in WIDTHS.items()}
    fitted = fit_outliers(train.items(), np.arange(120) % 3)
    return fitted.with_validation({name: draw(60, width) for name, width in WIDTHS.items()})


def test_outliers(detector: OutlierDetector) -> None:
    module = OutlierModule(detector, WIDTHS)
    usual = {name: draw(40, width, seed=1) for name, width in WIDTHS.items()}
    for values in (
        usual,
        {name: 4 + value for name, value in usual.items()},
        {name: 0 * value for name, value in usual.items()},
    ):
        expected = detector.p_values(values)
        found = module({name: torch.from_numpy(value) for name, value in values.items()})
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1 / 61 + 1e-6)  # one row of 60 may be on the other side
        assert np.mean(np.abs(found.numpy() - expected) < 1e-6) > 0.9
    assert expected.max() < 1 / 2
    maps = {name: draw(5, width, 3, 2) for name, width in WIDTHS.items()}
    found = module({name: torch.from_numpy(value) for name, value in maps.items()})
    expected = detector.p_values({name: value.mean((2, 3)) for name, value in maps.items()})
    np.testing.assert_allclose(found.numpy(), expected, atol=1 / 61 + 1e-6)
    with pytest.raises(WeightsError, match=r"by 7 features of stages.2: its network has others"):
        OutlierModule(detector, WIDTHS | {"stages.2": 8})
