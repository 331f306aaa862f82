"""The job, from a store to a folder of results."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, r2_score

import densefeat
from densefeat.errors import OutputError, UsageError, WeightsError
from densefeat.labels.splits import split_sha256
from densefeat.probing.job import Probed, probe
from densefeat.probing.probe_file import load_probe
from support.probes import NAMES, WIDTHS, draw_codes, make_features, write_class_store, write_probe_store

FILES = {"results.json", "report.html", "predictions.csv", "probe.safetensors"}
PICTURES = {"blocks.png", "blocks.svg", "confusion.png", "confusion.svg", "reliability.png", "reliability.svg"}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests do without: they take longest."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def pictures() -> None:
    """For a test that does with them."""


def read_lines(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def by_name(probed: Probed, name: str) -> dict[str, Any]:
    return next(candidate for candidate in probed.results["candidates"] if candidate["name"] == name)


def test_files_and_results(tmp_path: Path, pictures: None) -> None:
    store = write_class_store(tmp_path / "s.parquet")
    probed = probe(store, tmp_path / "out", protocol="ridge")
    out, results = tmp_path / "out", probed.results
    assert {path.name for path in out.iterdir()} == FILES | PICTURES
    assert json.loads((out / "results.json").read_text("utf-8")) == results
    assert [candidate["name"] for candidate in results["candidates"]][:3] == list(WIDTHS)
    assert results["candidates"][-1]["name"] == "all"
    assert (results["task"], results["classes"], results["main_metric"]) == ("single", list(NAMES[:3]), "top1")
    assert results["rows"] == {"train": 173, "val": 19, "test": 48}
    assert results["provenance"]["model"] == "made-up"
    assert {entry["shots"] for entry in results["few_shot"]} == {1, 5, 10, 25}
    best = by_name(probed, results["best"])
    assert best["val"]["top1"] == max(candidate["val"]["top1"] for candidate in results["candidates"])
    low, high = best["intervals"]["top1"]
    assert low <= best["test"]["top1"] <= high


def test_predictions_are_those_of_the_probe(tmp_path: Path) -> None:
    store = write_class_store(tmp_path / "s.parquet")
    probed = probe(store, tmp_path / "out", protocol="ridge")
    opened, loaded = densefeat.open_store(store), load_probe(tmp_path / "out")
    assert loaded.told["test"] == by_name(probed, probed.results["best"])["test"]
    row_of = {path: row for row, path in enumerate(opened.keys)}
    lines = read_lines(tmp_path / "out/predictions.csv")
    rows = [row_of[line["path"]] for line in lines]
    scores = loaded.scores({name: opened[name][rows] for name in loaded.columns})
    assert [line["predicted"] for line in lines] == [loaded.classes[code] for code in scores.argmax(1)]
    assert [line["label"] for line in lines] == opened.labels[rows].tolist()
    assert loaded.certainty is not None
    calibrated = softmax(scores.astype(np.float64) / loaded.certainty.temperature, 1).max(1)
    np.testing.assert_allclose([float(line["probability"]) for line in lines], calibrated, rtol=1e-4)
    ood = loaded.p_values({name: opened[name][rows] for name in loaded.columns_read})
    np.testing.assert_allclose([float(line["ood"]) for line in lines], ood, rtol=1e-3)
    right = 100 * accuracy_score([line["label"] for line in lines], [line["predicted"] for line in lines])
    assert right == pytest.approx(loaded.told["test"]["top1"])


def test_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    probed = probe(write_class_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="knn", seed=5)
    tested = {line["path"] for line in read_lines(tmp_path / "out/predictions.csv")}
    assert len(tested) == probed.results["rows"]["test"]
    again = probe(tmp_path / "s.parquet", tmp_path / "other", protocol="ridge", seed=5)
    assert again.results["split_sha256"] == probed.results["split_sha256"]
    third = probe(tmp_path / "s.parquet", tmp_path / "third", protocol="knn", seed=6)
    assert third.results["split_sha256"] != probed.results["split_sha256"]


def test_logistic_regression_as_by_scikit_learn(tmp_path: Path) -> None:
    """With a options split, the C that was chosen: the same accuracy on the test rows, and nearly the same weights."""
    codes = draw_codes(400, 4)
    store = write_probe_store(tmp_path / "s.parquet", None, make_features(codes, widths={"block1": 6}))
    parts = np.random.default_rng(1).choice(["train", "val", "test"], 400, p=[0.6, 0.2, 0.2])
    lines = [f"{row}.jpg,{NAMES[codes[row]]},{parts[row]}" for row in range(400)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,part", *lines]) + "\n")
    probed = probe(store, tmp_path / "out", labels=tmp_path / "l.csv", split_column="part")
    candidate = by_name(probed, "block1")
    x = densefeat.open_store(store)["block1"]
    fitting, test = parts != "test", parts == "test"
    reference = LogisticRegression(C=candidate["chosen"]["C"], max_iter=10_000, tol=1e-10).fit(x[fitting], codes[fitting])
    assert candidate["test"]["top1"] == pytest.approx(100 * reference.score(x[test], codes[test]))
    head = load_probe(tmp_path / "out").head
    np.testing.assert_allclose(softmax(head.scores(x[test]), 1), reference.predict_proba(x[test]), atol=2e-3)
    assert probed.results["split_sha256"] == split_sha256(
        [f"{row}.jpg" for row in range(400)], np.array([["train", "val", "test"].index(part) for part in parts])
    )


def test_the_same_files_every_time(tmp_path: Path, pictures: None) -> None:
    store = write_class_store(tmp_path / "s.parquet")
    for name in ("a", "b"):
        probe(store, tmp_path / name, protocol="ridge")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_finished_probe_is_not_fitted_again(tmp_path: Path) -> None:
    store = write_class_store(tmp_path / "s.parquet")
    first = probe(store, tmp_path / "out", protocol="knn")
    before = contents(tmp_path / "out")
    again = probe(store, tmp_path / "out", protocol="knn")
    assert (first.done_before, again.done_before, again.results) == (False, True, first.results)
    assert contents(tmp_path / "out") == before
    for changed in ({"seed": 1}, {"protocol": "ridge"}):
        with pytest.raises(UsageError, match=r"out' holds another probe \(.*differ\): choose another --out"):
            probe(store, tmp_path / "out", **{"protocol": "knn"} | changed)
    assert contents(tmp_path / "out") == before


def test_interrupted_probe_is_fitted_again(tmp_path: Path) -> None:
    store = write_class_store(tmp_path / "s.parquet")
    probe(store, tmp_path / "out", protocol="knn")
    before = contents(tmp_path / "out")
    (tmp_path / "out/results.json").unlink()
    (tmp_path / "out/report.html").write_bytes(b"cut")
    assert not probe(store, tmp_path / "out", protocol="knn").done_before
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("gone", ["report.html", "predictions.csv", "probe.safetensors", "confusion.svg", "reliability.png"])
def test_probe_with_a_missing_file_is_fitted_again(tmp_path: Path, gone: str, request: pytest.FixtureRequest) -> None:
    if gone in PICTURES:
        request.getfixturevalue("monkeypatch").undo()
    store = write_class_store(tmp_path / "s.parquet", 60)
    probe(store, tmp_path / "out", protocol="knn")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / gone).unlink()
    assert not probe(store, tmp_path / "out", protocol="knn").done_before
    assert contents(tmp_path / "out") == before
    assert probe(store, tmp_path / "out", protocol="knn").done_before


def test_a_damaged_probe_is_fitted_again_and_damaged_results_are_refused(tmp_path: Path) -> None:
    store, out = write_class_store(tmp_path / "s.parquet", 60), tmp_path / "out"
    probe(store, out, protocol="knn")
    before = contents(out)
    data = (out / "probe.safetensors").read_bytes()
    (out / "probe.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not probe(store, out, protocol="knn").done_before
    assert contents(out) == before
    text = (out / "results.json").read_text("utf-8")
    (out / "results.json").write_text(
        text.replace('"macro_f1": 1', '"macro_f1": 9', 1).replace('"macro_f1": 0', '"macro_f1": 9', 1)
    )
    with pytest.raises(WeightsError, match=r"^results '.*results.json': damaged, its content does not match its checksum"):
        probe(store, out, protocol="knn")


@pytest.mark.parametrize("entry", ["task", "classes"])
def test_results_that_lack_an_entry(tmp_path: Path, entry: str) -> None:
    store, out = write_class_store(tmp_path / "s.parquet", 60), tmp_path / "out"
    results = probe(store, out, protocol="knn").results
    lacking = {name: value for name, value in results.items() if name not in (entry, "densefeat_sha256")}
    (out / "results.json").write_text(json.dumps(lacking))
    with pytest.raises(WeightsError, match=rf"results.json': damaged \('{entry}'\)"):
        probe(store, out, protocol="knn")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("thesis.doc", "x", "holds other files than a probe \\('thesis.doc'\\)"),
        ("results.json", "{}", "results.json' exists and was not written by this command"),
        ("results.json", "[1", "results.json' exists and was not written by this command"),
        (
            "predictions.csv",
            "path,label,predicted,probability,ood\n",
            "predictions.csv' exists and was not written by this command",
        ),
        (None, None, "is a file: choose a folder"),
    ],
)
def test_folder_with_something_else(tmp_path: Path, name: str | None, content: str | None, match: str) -> None:
    store, out = write_class_store(tmp_path / "s.parquet"), tmp_path / "out"
    if name is None:
        out.write_text("x")
    else:
        out.mkdir()
        (out / name).write_text(str(content))
    with pytest.raises(UsageError, match=match):
        probe(store, out, protocol="knn")


def test_several_labels(tmp_path: Path) -> None:
    codes = draw_codes(300, 4)
    labels = [NAMES[code] + ("|zoo" if code > 1 else "") for code in codes]
    store = write_probe_store(tmp_path / "s.parquet", labels, make_features(codes))
    for protocol in ("ridge", "knn", "logreg"):
        probed = probe(store, tmp_path / protocol, protocol=protocol)
        assert (probed.results["task"], probed.results["classes"]) == ("multi", [*NAMES[:4], "zoo"])
        assert {path.name for path in (tmp_path / protocol).iterdir()} == FILES
        loaded, opened = load_probe(tmp_path / protocol), densefeat.open_store(store)
        lines = read_lines(tmp_path / protocol / "predictions.csv")
        rows = [int(line["path"].partition(".")[0]) for line in lines]
        scores = loaded.scores({name: opened[name][rows] for name in loaded.columns})
        wanted = np.array([[name in line["label"].split("|") for name in loaded.classes] for line in lines])
        expected = 100 * np.mean([average_precision_score(wanted[:, k], scores[:, k]) for k in range(5)])
        assert loaded.told["test"]["map"] == pytest.approx(expected, abs=1e-3)
        assert expected > 60


def test_numbers(tmp_path: Path) -> None:
    features = make_features(np.zeros(300, np.int64))
    values = features["block2"] @ np.arange(6) + 0.1 * np.random.default_rng(0).standard_normal(300)
    store = write_probe_store(tmp_path / "s.parquet", [f"{value:.5f}" for value in values], features)
    probed = probe(store, tmp_path / "out", protocol="ridge")
    assert (probed.results["task"], probed.results["classes"], probed.results["few_shot"]) == ("regression", [], [])
    assert "block2" in probed.results["best"] or probed.results["best"] == "all"
    assert by_name(probed, "block2")["test"]["r2"] > 0.99 > by_name(probed, "block1")["test"]["r2"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    lines = read_lines(tmp_path / "out/predictions.csv")
    wanted, candidate = ([float(line[name]) for line in lines] for name in ("label", "predicted"))
    best = by_name(probed, probed.results["best"])
    assert r2_score(wanted, candidate) == pytest.approx(best["test"]["r2"], abs=1e-4)
    with pytest.raises(UsageError, match="protocol 'logreg' predicts classes, but these labels are numbers: use ridge"):
        probe(store, tmp_path / "other", protocol="logreg")
    with pytest.raises(UsageError, match="--standardize is for logreg: ridge always does so"):
        probe(store, tmp_path / "other", standardize=True)
    assert probe(store, tmp_path / "out").done_before  # of numbers it is the protocol


def test_standardised_features(tmp_path: Path) -> None:
    features = make_features(draw_codes(200, 3))
    features = {name: (values * 1000 + 7).astype(np.float32) for name, values in features.items()}
    store = write_probe_store(tmp_path / "s.parquet", [NAMES[code] for code in draw_codes(200, 3)], features)
    plain, scaled = (probe(store, tmp_path / name, standardize=name == "scaled") for name in ("plain", "scaled"))
    assert (plain.results["protocol"]["standardize"], scaled.results["protocol"]["standardize"]) == (False, True)
    chosen = [by_name(probed, "block2")["chosen"]["C"] for probed in (plain, scaled)]
    assert chosen[0] < chosen[1] / 100  # the scale of features is a part of the penalty


@pytest.mark.parametrize("protocol", ["ridge", "knn", "logreg"])
def test_a_test_store_with_a_class_that_was_never_learnt(tmp_path: Path, protocol: str) -> None:
    first = write_class_store(tmp_path / "a.parquet", images="/train")
    codes = np.concatenate([draw_codes(50, 3, seed=1), [4, 4]])
    second = write_probe_store(tmp_path / "b.parquet", [NAMES[code] for code in codes], make_features(codes, 1), images="/test")
    probed = probe(first, tmp_path / "out", test=second, protocol=protocol)
    results = probed.results
    assert results["rows"] == {"train": 216, "val": 24, "test": 52}
    assert results["labels"]["untrained_classes"] == {"count": 1, "first": ["eel"]}
    lines = read_lines(tmp_path / "out/predictions.csv")
    assert [line["path"] for line in lines] == [f"{row}.jpg" for row in range(52)]
    assert sum(line["predicted"] == "eel" for line in lines) == 0
    assert (results["provenance"]["images"], results["test_provenance"]["images"]) == ("/train", "/test")


def test_patients_and_tiles_stay_together(tmp_path: Path) -> None:
    codes = draw_codes(240)
    keys = [f"{row // 4}.tif" for row in range(240)]
    places = [(32 * (row % 4), 0) for row in range(240)]
    labels = [NAMES[codes[row // 4]] for row in range(240)]
    store = write_probe_store(tmp_path / "s.parquet", labels, make_features(np.repeat(codes[:60], 4)), keys, places)
    probed = probe(store, tmp_path / "out", protocol="knn")
    lines = read_lines(tmp_path / "out/predictions.csv")
    tested = {line["path"] for line in lines}
    assert len(lines) == 4 * len(tested) == probed.results["rows"]["test"]
    assert {(line["x"], line["y"]) for line in lines} == {("0", "0"), ("32", "0"), ("64", "0"), ("96", "0")}
    assert probed.results["notes"] == ["only 20 validation rows: figures and choices are rough"]
    table = [f"{row}.tif,{labels[4 * row]},p{row // 3}" for row in range(60)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,patient", *table]))
    probe(store, tmp_path / "p", protocol="knn", labels=tmp_path / "l.csv", group_column="patient")
    tested = {int(line["path"].partition(".")[0]) for line in read_lines(tmp_path / "p/predictions.csv")}
    assert tested == {3 * patient + i for patient in {row // 3 for row in tested} for i in range(3)}


def test_note_on_a_split_within_images(tmp_path: Path) -> None:
    store = write_probe_store(
        tmp_path / "s.parquet",
        ["train", "test", "val", "train"] * 15,
        make_features(draw_codes(60)),
        [f"{row // 2}.tif" for row in range(60)],
        [(row % 2, 0) for row in range(60)],
    )
    (tmp_path / "l.csv").write_text("\n".join(["path,name", *(f"{i}.tif,{'ab'[i // 2 % 2]}" for i in range(30))]))
    options = {"labels": tmp_path / "l.csv", "label_column": "name", "split_column": "label"}
    probed = probe(store, tmp_path / "out", protocol="knn", **options)
    assert probed.results["rows"] == {"train": 30, "val": 15, "test": 15}
    assert probed.results["notes"] == [
        "30 images (or groups) have rows in several parts: figures will be too good",
        "only 15 validation and 15 test rows: figures and choices are rough",
    ]


def test_a_split_without_validation_rows(tmp_path: Path) -> None:
    codes = draw_codes(100)
    store = write_probe_store(tmp_path / "s.parquet", None, make_features(codes))
    lines = [f"{row}.jpg,{NAMES[codes[row]]},{'test' if row < 30 else 'train'}" for row in range(100)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,part", *lines]))
    probed = probe(store, tmp_path / "out", protocol="knn", labels=tmp_path / "l.csv", split_column="part")
    assert probed.results["rows"] == {"train": 63, "val": 7, "test": 30}


def test_rows_without_labels_and_lone_classes_are_reported(tmp_path: Path) -> None:
    codes = draw_codes(100)
    labels: list[str | None] = [NAMES[code] for code in codes]
    labels[7] = labels[8] = None
    labels[9] = "yak"
    store = write_probe_store(tmp_path / "s.parquet", labels, make_features(codes))
    probed = probe(store, tmp_path / "out", protocol="ridge")
    assert probed.results["labels"] == {
        "rows": 100,
        "labelled": 98,
        "without_label": {"count": 2, "first": ["7.jpg", "8.jpg"]},
        "task": "single",
        "task_from": "the labels are names",
        "classes": 4,
        "untrained_classes": {"count": 0, "first": []},
        "lone_classes": {"count": 1, "first": ["yak"]},
    }
    assert "yak" not in {line["label"] for line in read_lines(tmp_path / "out/predictions.csv")}


def csv_parts(folder: Path, rows: list[tuple[str, str]]) -> Path:
    (folder / "l.csv").write_text("\n".join(["path,label,part", *(f"{i}.jpg,{a},{b}" for i, (a, b) in enumerate(rows))]))
    return folder / "l.csv"


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([("a", "train"), ("b", "train"), ("a", "val")], r"no test rows with a label \(2 train, 1 val, 0 test\)"),
        ([("a", "test"), ("b", "test")], r"no train rows with a label \(0 train, 0 val, 2 test\)"),
        ([("a", "train"), ("b", "val"), ("c", "val"), ("a", "test")], "1 training rows for 3 classes: give more rows"),
        ([("a", "train"), ("a", "train"), ("b", "val"), ("b", "test")], "all 2 training rows have the same class"),
    ],
)
def test_unusable_parts(tmp_path: Path, rows: list[tuple[str, str]], match: str) -> None:
    store = write_probe_store(tmp_path / "s.parquet", None, make_features(draw_codes(len(rows))))
    with pytest.raises(UsageError, match=match):
        probe(store, tmp_path / "out", protocol="knn", labels=csv_parts(tmp_path, rows), split_column="part")
    assert not (tmp_path / "out").exists()


def test_every_row_another_class(tmp_path: Path) -> None:
    store = write_probe_store(tmp_path / "s.parquet", [f"{i}" for i in range(50)], make_features(draw_codes(50)))
    with pytest.raises(UsageError, match=r"36 training rows for 50 classes: .* --task regression"):
        probe(store, tmp_path / "out", protocol="knn")
    assert probe(store, tmp_path / "out", protocol="knn", task="regression").results["task"] == "regression"


def test_images_to_test_on_are_also_to_learn_from(tmp_path: Path) -> None:
    stores = [write_class_store(tmp_path / f"{name}.parquet", 60, images="/same") for name in "ab"]
    with pytest.raises(UsageError, match=r"60 images of .*b.parquet are also in .*a.parquet, '0.jpg' first"):
        probe(stores[0], tmp_path / "out", test=stores[1])
    with pytest.raises(UsageError, match="--split-column names the test rows, and so does --test"):
        probe(stores[0], tmp_path / "out", test=stores[1], split_column="label")


def test_one_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    """They are others, unless a group says that they belong together."""
    keys = [f"{NAMES[row % 2]}/{row // 2}.png" for row in range(60)]
    codes = np.arange(60) % 2
    patients = {"a": [f"p{row // 3}" for row in range(60)], "b": [f"p{18 + row // 3}" for row in range(60)]}
    stores = [
        write_probe_store(tmp_path / f"{name}.parquet", labels, make_features(codes, seed), keys, images=f"/{name}")
        for seed, (name, labels) in enumerate(patients.items())
    ]
    lines = [f"{key},{NAMES[code]}" for key, code in zip(keys, codes, strict=True)]
    (tmp_path / "l.csv").write_text("\n".join(["path,kind", *lines]))
    options = {"protocol": "knn", "test": stores[1], "labels": tmp_path / "l.csv", "label_column": "kind"}
    results = probe(stores[0], tmp_path / "out", **options).results
    assert (results["rows"], results["notes"]) == (
        {"train": 54, "val": 6, "test": 60},
        ["only 6 validation rows: figures and choices are rough"],
    )
    torn = probe(stores[0], tmp_path / "grouped", **options, group_column="label").results["notes"]
    assert torn[0] == "2 images (or groups) have rows in several parts: figures will be too good"


def test_classes_of_one_image_in_each_store(tmp_path: Path) -> None:
    codes = np.append(draw_codes(60), [4])
    stores = [
        write_probe_store(tmp_path / f"{name}.parquet", [NAMES[code] for code in codes], make_features(codes), images=name)
        for name in "ab"
    ]
    results = probe(stores[0], tmp_path / "out", test=stores[1], protocol="knn").results
    assert results["labels"]["lone_classes"] == {"count": 0, "first": []}


def test_an_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="protocol 'svm': one of logreg, knn, ridge"):
        probe(write_class_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="svm")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file/out", tmp_path / "file/out/in/it"):
        with pytest.raises(OutputError, match=f"output '{out}' cannot be written: Not a directory"):
            probe(write_class_store(tmp_path / "s.parquet"), out, protocol="knn")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_folder_without_permission(tmp_path: Path) -> None:
    store, closed = write_class_store(tmp_path / "s.parquet", 60), tmp_path / "closed"
    for mode in (0o500, 0):
        closed.mkdir(mode)
        for out in (closed, closed / "out"):
            with pytest.raises(OutputError, match=f"output '{out}' cannot be written: Permission denied"):
                probe(store, out, protocol="knn")
        closed.rmdir()


def test_without_matplotlib(tmp_path: Path) -> None:
    probe(write_class_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="knn")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
