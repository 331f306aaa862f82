"""The certainty of a probe: fitted on validation rows, reported on test rows, the same by other means."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

import densefeat
from densefeat.certainty import fit_outliers
from densefeat.probing.certainty import _choose_columns
from densefeat.probing.job import probe
from densefeat.probing.probe_file import load_probe
from support.probes import NAMES, draw_codes, make_features, write_probe_store


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)


def write(path: Path, labels: list[str], features: dict[str, np.ndarray]) -> tuple[Path, np.ndarray]:
    """A store with a column of parts; half of the rows are to learn from, a quarter each for validation and test."""
    parts = np.random.default_rng(7).permutation(np.repeat(["train", "train", "val", "test"], -(-len(labels) // 4)))
    parts = parts[: len(labels)]
    keys = [f"{i}.jpg" for i in range(len(labels))]
    with open(path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "part"), *zip(keys, labels, parts, strict=True)])
    return write_probe_store(path / "s.parquet", None, features, keys), parts


def run(
    path: Path, labels: list[str], features: dict[str, np.ndarray], **options: Any
) -> tuple[dict[str, Any], np.ndarray, Any]:
    store, parts = write(path, labels, features)
    probed = probe(store, path / "out", labels=path / "labels.csv", split_column="part", **options)
    return probed.results["certainty"], parts, load_probe(path / "out")


@pytest.mark.parametrize("protocol", ["logreg", "knn", "ridge"])
def test_classes(protocol: str, tmp_path: Path) -> None:
    codes = draw_codes(1200)
    features = make_features(codes)
    found, parts, loaded = run(tmp_path, [NAMES[code] for code in codes], features, protocol=protocol)
    certainty, test = loaded.certainty, parts == "test"
    scores = loaded.scores({name: values[test] for name, values in features.items()})
    chances = softmax(scores.astype(np.float64) / certainty.temperature, 1)
    own, guess = chances[np.arange(300), codes[test]], chances.argmax(1)
    assert (found["temperature"], found["validation_rows"]) == (certainty.temperature, 300)
    measured = found["calibration"]
    assert measured["test"]["after"]["log_loss"] == pytest.approx(-np.log(own).mean())
    assert measured["val"]["after"]["log_loss"] <= measured["val"]["before"]["log_loss"] + 1e-3
    low, high = measured["intervals"]["after"]["brier"]
    assert low < measured["test"]["after"]["brier"] < high
    for entry in found["sets"]:
        quantile = np.sort(certainty.nonconformity)[int(np.ceil(301 * entry["level"])) - 1]
        members = (1 - chances <= quantile) | (np.arange(3) == guess[:, None])
        assert entry["coverage"] == pytest.approx(members[np.arange(300), codes[test]].mean())
        assert entry["size"] == pytest.approx(members.sum(1).mean())
        assert entry["coverage"] > entry["level"] - 0.06
    assert "58 " not in found["risk"][0]["problem"]
    assert "cannot promise that at most 1 %" in found["risk"][0]["problem"]
    entry = found["risk"][3]
    given = chances.max(1) >= entry["threshold"]
    assert (entry["risk"], entry["answered"]) == (0.1, pytest.approx(given.mean()))
    assert entry["wrong"] == pytest.approx((guess != codes[test])[given].mean())
    assert entry["wrong"] < 0.1 < (guess != codes[test]).mean() + 0.1
    assert sum(found["reliability"]["after"]["count"]) == 300


def test_outliers_are_told_by_the_blocks_up_to_the_last_one_read(tmp_path: Path) -> None:
    codes = draw_codes(600)
    features = make_features(codes)
    last = np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)  # says nothing of the class
    features = {"block1": features["block3"], "block2": features["block2"], "block3": last}
    found, parts, loaded = run(tmp_path, [NAMES[code] for code in codes], features, protocol="ridge")
    blocks = list(loaded.certainty.outliers.blocks)
    assert blocks == found["outliers"]["columns"] == ["block1", "block2", "block3"][: int(loaded.columns[-1][-1])]
    assert loaded.columns_read == tuple(dict.fromkeys((*loaded.columns, *blocks)))
    rows = {part: {name: features[name][parts == part] for name in blocks} for part in ("train", "val", "test")}
    detector = fit_outliers(rows["train"].items(), codes[parts == "train"]).with_validation(rows["val"])
    np.testing.assert_allclose(loaded.p_values(rows["test"]), detector.p_values(rows["test"]), atol=0.01)
    assert found["outliers"]["unusual"] == pytest.approx((loaded.p_values(rows["test"]) <= 0.05).mean())
    far = {name: values + 50 for name, values in rows["test"].items()}
    assert loaded.p_values(far).max() == pytest.approx(1 / 151)


def test_columns_of_several_pools() -> None:
    provenance = {"pool": ["max", "avg"]}
    names = ["block1_max", "block1_avg", "block2_max", "block2_avg", "block3_max", "block3_avg"]
    assert _choose_columns(["block2_max"], names, provenance) == ["block1_avg", "block2_avg"]
    assert _choose_columns(["block1_avg"], names[:2] + names[3:], provenance) == ["block1_avg"]
    assert _choose_columns(["block2_max"], [names[0], names[2]], provenance) == ["block1_max", "block2_max"]


def test_several_labels(tmp_path: Path) -> None:
    codes = draw_codes(800, 4)
    labels = [NAMES[code] + ("|zoo" if code > 1 else "") for code in codes]
    features = make_features(codes)
    found, parts, loaded = run(tmp_path, labels, features, protocol="logreg")
    scores = loaded.scores({name: values[parts == "test"] for name, values in features.items()})
    chances = expit(scores.astype(np.float64) / loaded.certainty.temperature)
    wanted = np.array([[name in label.split("|") for name in loaded.classes] for label in np.array(labels)[parts == "test"]])
    brier = found["calibration"]["test"]["after"]["brier"]
    assert brier == pytest.approx(np.square(chances - wanted).mean())
    assert found["sets"][0]["coverage"] == pytest.approx(0.9, abs=0.06)
    assert sum(found["reliability"]["after"]["count"]) == 5 * len(wanted)


def test_numbers(tmp_path: Path) -> None:
    features = make_features(np.zeros(400, np.int64))
    values = features["block2"] @ np.arange(6) + np.random.default_rng(0).standard_normal(400)
    found, parts, loaded = run(tmp_path, [f"{value:.5f}" for value in values], features)
    assert found["temperature"] is None
    assert "risk" not in found
    errors = np.abs(loaded.scores({name: each[parts == "test"] for name, each in features.items()}) - values[parts == "test"])
    width = loaded.certainty.find_quantile(0.9)
    assert found["sets"][0]["size"] == pytest.approx(2 * width)
    assert found["sets"][0]["coverage"] == pytest.approx((errors <= width).mean())
    assert width == pytest.approx(1.645, rel=0.25)  # deviations of 1


def test_the_page_and_the_table(tmp_path: Path) -> None:
    codes = draw_codes(400)
    run(tmp_path, [NAMES[code] for code in codes], make_features(codes), protocol="ridge")
    page = (tmp_path / "out/report.html").read_text("utf-8")
    for text in ("Calibration of the best candidate", "Answers with a promised risk", "Sets with a promised coverage",
                 "The test images least like those learnt from", "100 validation rows cannot promise"):  # fmt: skip
        assert text in page
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["path", "label", "predicted", "probability", "ood"]
    assert min(float(line["ood"]) for line in lines) >= 1 / 101 - 1e-4


def test_few_training_rows_tell_no_outliers(tmp_path: Path) -> None:
    codes = np.arange(14) % 2
    features = {"block1": make_features(codes)["block1"]}
    labels, parts = [NAMES[code] for code in codes], ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    keys = [f"{i}.jpg" for i in range(14)]
    (tmp_path / "l.csv").write_text("path,label,part\n" + "\n".join(map(",".join, zip(keys, labels, parts, strict=True))))
    store = write_probe_store(tmp_path / "s.parquet", None, features, keys)
    found = probe(store, tmp_path / "out", labels=tmp_path / "l.csv", split_column="part", protocol="ridge").results[
        "certainty"
    ]
    assert found["outliers"] is None
    assert "4 validation rows cannot promise a coverage of 90 %: that takes 9" in found["sets"][0]["problem"]
    assert densefeat.load_probe(tmp_path / "out").p_values({}) is None
