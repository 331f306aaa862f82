"""The certainty in the file of a probe: the same after loading, and one line for whatever is damaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densefeat.certainty import Certainty, fit_certainty, fit_outliers
from densefeat.errors import WeightsError
from densefeat.labels import Targets
from densefeat.probing.certainty_file import pack_certainty, parse_certainty
from densefeat.probing.fitting import LinearHead
from densefeat.probing.probe_file import Probe, load_probe, save_probe

R = np.random.default_rng(0)
CODES = R.integers(0, 3, 60)
X = R.standard_normal((60, 5)).astype(np.float32)
HEAD = LinearHead(R.standard_normal((3, 5)).astype(np.float32), np.zeros(3, np.float32))
TARGETS = Targets("single", ("a", "b", "c"), CODES)


def make() -> Certainty:
    detector = fit_outliers([("block1", X[:40]), ("block2", X[:40, :2].copy())], CODES[:40])
    detector = detector.with_validation({"block1": X[40:], "block2": X[40:, :2]})
    return replace(fit_certainty(TARGETS.take(np.arange(40, 60)), HEAD.scores(X[40:])), outliers=detector)


CERTAINTY = make()


@pytest.mark.parametrize("certainty", [CERTAINTY, replace(CERTAINTY, outliers=None), None], ids=["all", "no outliers", "none"])
def test_the_same_after_loading(certainty: Certainty | None, tmp_path: Path) -> None:
    save_probe(tmp_path / "p", Probe("single", TARGETS.classes, ("block1",), {}, HEAD, certainty=certainty))
    loaded = load_probe(tmp_path / "p")
    if certainty is None:
        assert loaded.certainty is None
        return
    assert loaded.certainty is not None
    for name in ("temperature", "confidence", "right", "nonconformity"):
        np.testing.assert_array_equal(getattr(loaded.certainty, name), getattr(certainty, name))
    features = {"block1": X, "block2": X[:, :2]}
    if certainty.outliers is None:
        assert loaded.p_values(features) is None
    else:
        np.testing.assert_array_equal(loaded.p_values(features), certainty.outliers.p_values(features))
        assert loaded.columns_read == ("block1", "block2")


TENSORS, METADATA = pack_certainty(CERTAINTY)
BLOCKS = METADATA["outliers"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({}, {"temperature": 0.0}, "temperature 0.0"),
        ({}, {"temperature": 1}, "temperature 1"),
        ({}, {"temperature": 1e-300}, "temperature 1e-300"),  # scores divided by it are infinite, and probabilities NaN
        ({}, {"temperature": float("inf")}, "temperature inf"),
        ({"certainty.nonconformity": np.zeros(0)}, {}, r"float64 \(20,\) where float64 \(0,\)"),
        ({"certainty.nonconformity": np.arange(20.0)[::-1].copy()}, {}, "not in order"),
        ({"certainty.nonconformity": np.zeros(20_001)}, {}, "should be"),
        ({"certainty.confidence": np.linspace(0.9, 1.5, 20)}, {}, "a confidence that is no probability"),
        ({"certainty.confidence": np.full(20, np.nan)}, {}, "20 numbers are NaN or infinite"),
        ({"certainty.right": np.full(20, 2, np.uint8)}, {}, "right up to 2"),
        ({"certainty.right": np.zeros(20)}, {}, "float64"),
        ({"certainty.right": None}, {}, "right"),
        ({"outliers.validation": np.zeros(0)}, {}, "compared with 0 validation rows"),
        ({"outliers.validation": np.array([1.0, 0.0])}, {}, "not in order"),
        ({"outliers.0.whitening": np.zeros((5, 4), np.float32)}, {}, r"float32 \(5, 4\) where float32 \(5, 5\)"),
        ({"outliers.0.whitening": np.full((5, 5), np.inf, np.float32)}, {}, "25 numbers are NaN or infinite"),
        ({"outliers.0.centres": np.zeros((0, 5), np.float32)}, {}, "0 centres"),
        ({"outliers.1.bank": np.zeros((9, 3), np.float16)}, {}, r"float16 \(9, 3\)"),
        ({"outliers.1.bank": np.zeros((9, 2), np.float32)}, {}, "float32"),
        ({"outliers.1.scale": np.zeros(2)}, {}, "scale"),
        ({"outliers.1.mean": None}, {}, "mean"),
        ({}, {"outliers": []}, "outliers of no blocks"),
        ({}, {"outliers": 3}, "outliers of no blocks"),
        ({}, {"outliers": [BLOCKS[0], BLOCKS[0]]}, "repeated"),
        ({}, {"outliers": [BLOCKS[0] | {"k": 0}]}, "k 0 of 32 rows"),
        ({}, {"outliers": [BLOCKS[0] | {"k": 33}]}, "k 33 of 32 rows"),
        ({}, {"outliers": [BLOCKS[0] | {"k": True}]}, "k True"),
    ],
)
def test_damage(tensors: dict[str, Any], metadata: dict[str, Any], match: str) -> None:
    changed = {name: value for name, value in (TENSORS | tensors).items() if value is not None}
    with pytest.raises((ValueError, TypeError, KeyError), match=match):
        parse_certainty(changed, METADATA | metadata, "single")


def test_damage_in_a_file(tmp_path: Path) -> None:
    broken = replace(CERTAINTY, nonconformity=CERTAINTY.nonconformity[::-1])
    save_probe(tmp_path / "p", Probe("single", TARGETS.classes, ("block1",), {}, HEAD, certainty=broken))
    with pytest.raises(
        WeightsError, match=r"damaged, or not a probe \(ValueError: values of validation rows that are not in order"
    ):
        load_probe(tmp_path / "p")
