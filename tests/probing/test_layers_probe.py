"""The protocol layers, from a store to the files of a probe, and the use of the probe."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import densefeat
from densefeat.errors import UsageError, WeightsError
from densefeat.evaluation.predictions import predict
from densefeat.probing.job import Probed, probe
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.metrics import MAIN
from densefeat.probing.probe_file import Probe, load_probe, save_probe
from support.probes import NAMES, draw_codes, make_features, write_probe_store
from support.runs import write_classes
from support.tiny_net import TINY, write_tiny_weights

WIDTHS = {"block1": 24, "block2": 24, "block3": 24}
TOLD = "no dense layers are known, so that each column counts as one layer"


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests do without: they take longest."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def pictures() -> None:
    """For a test that does with them."""


@pytest.fixture(autouse=True)
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.probing.layers.SHARES", (0.05, 0.2, 0.5))
    monkeypatch.setattr("densefeat.probing.layer_selection.PENALTIES", (0.1, 0.01))
    monkeypatch.setattr("densefeat.probing.layer_selection.RESAMPLES", 4)


def write_store(path: Path, labels: str = "classes", rows: int = 200, **options: Any) -> Path:
    """A store of a network whose layers are known; ``labels``: of which kind."""
    codes = draw_codes(rows)
    texts = {
        "classes": [NAMES[code] for code in codes],
        "several": [f"{NAMES[code]}|{NAMES[3]}" if code else NAMES[4] for code in codes],
        "numbers": [f"{1.5 * code + 0.01 * row}" for row, code in enumerate(codes)],
    }[labels]
    return write_probe_store(path, texts, make_features(codes, widths=WIDTHS), **{"model": TINY, "pool": ["avg"]} | options)


def by_name(probed: Probed, name: str) -> dict[str, Any]:
    return next(candidate for candidate in probed.results["candidates"] if candidate["name"] == name)


def test_files_and_results(tmp_path: Path, pictures: None) -> None:
    probed = probe(write_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="layers")
    results, names = probed.results, {path.name for path in (tmp_path / "out").iterdir()}
    assert {"layers.png", "layers.svg", "blocks.png", "confusion.png", "probe.safetensors"} <= names
    assert json.loads((tmp_path / "out/results.json").read_text("utf-8")) == results
    assert (results["best"], results["protocol"]["name"]) == ("layers", "layers")
    assert results["protocol"]["layers"] == {name: [12, 6, 6] for name in WIDTHS}
    names = [candidate["name"] for candidate in results["candidates"]]
    assert (names[:3], names[4:]) == (list(WIDTHS), ["all", "layers"])
    told = results["layers"]
    assert [(entry["column"], entry["layer"]) for entry in told["by_layer"][:4]] == [
        ("block1", "input"), ("block1", "layer 1"), ("block1", "layer 2"), ("block2", "input"),
    ]  # fmt: skip
    assert told["kept"] == sum(map(len, told["channels"].values())) == by_name(probed, "layers")["features"]
    assert told["resamples"]["number"] == 4
    assert not [note for note in results["notes"] if "dense layers" in note]
    assert "layers compared on the same test rows" in (tmp_path / "out/report.html").read_text()
    again = probe(tmp_path / "s.parquet", tmp_path / "out", protocol="layers")
    assert (again.done_before, again.results) == (True, results)
    (tmp_path / "out/layers.svg").unlink()
    assert not probe(tmp_path / "s.parquet", tmp_path / "out", protocol="layers").done_before
    with pytest.raises(UsageError, match=r"holds another probe \(protocol, settings differ\)"):
        probe(tmp_path / "s.parquet", tmp_path / "out", protocol="logreg")


@pytest.mark.parametrize("labels", ["classes", "several", "numbers"])
def test_comparisons_and_predictions(labels: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", labels)
    probed = probe(store, tmp_path / "out", protocol="layers")
    main = MAIN[probed.results["task"]]
    own = by_name(probed, "layers")
    comparisons = probed.results["layers"]["comparisons"]
    assert [entry["role"] for entry in comparisons] == ["last block", "best by block", "all blocks"]
    assert [entry["with"] for entry in comparisons][::2] == ["block3", "all"]
    others = [candidate for candidate in probed.results["candidates"] if candidate["name"] != "layers"]
    assert by_name(probed, comparisons[1]["with"])["val"][main] == max(candidate["val"][main] for candidate in others)
    for entry in comparisons:
        assert entry["difference"] == pytest.approx(own["test"][main] - by_name(probed, entry["with"])["test"][main])
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    loaded, opened = load_probe(tmp_path / "out"), densefeat.open_store(store)
    assert isinstance(loaded.head, LayersHead)
    assert loaded.told["test"] == own["test"]
    row_of = {path: row for row, path in enumerate(opened.keys)}
    with open(tmp_path / "out/predictions.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [row_of[line["path"]] for line in lines]
    scores = loaded.scores({name: opened[name][rows] for name in loaded.columns})
    if labels == "classes":
        assert [line["predicted"] for line in lines] == [loaded.classes[code] for code in scores.argmax(1)]
    if labels == "numbers":
        np.testing.assert_allclose([float(line["predicted"]) for line in lines], scores, rtol=1e-5)


def test_layers_are_explained(tmp_path: Path) -> None:
    probed = probe(write_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="layers")
    records = load_probe(tmp_path / "out").explain_layers()
    assert records == probed.results["layers"]["by_layer"]
    assert len(records) == 9
    assert sum(record["kept"] for record in records) == probed.results["layers"]["kept"]
    linear = probe(tmp_path / "s.parquet", tmp_path / "ridge", protocol="ridge")
    with pytest.raises(UsageError, match="does not choose features of layers: make one with --protocol layers"):
        load_probe(linear.path).explain_layers()


@pytest.mark.parametrize(
    "change", [{"kept": "3"}, {"kept": -1}, {"column": 3}, {"share": 2.0}, {"share": "x"}, {"share_interval": [0.1]},
               {"share_interval": 3}, {"relevance": None}]
)  # fmt: skip
def test_damaged_records(change: dict[str, Any], tmp_path: Path) -> None:
    head = LayersHead((2,), np.array([0]), np.ones((2, 1), np.float32), np.zeros(2, np.float32))
    record = {
        "column": "block1", "layer": "all", "features": 2, "kept": 1, "share": 1.0, "share_interval": [0.5, 1.0],
        "relevance": 1.0, "relevance_interval": [0.5, 1.0],
    }  # fmt: skip
    for told in ({"layers": [record]}, {"layers": [record | {"share_interval": None, "relevance_interval": None}]}):
        save_probe(tmp_path / "p", Probe("single", ("a", "b"), ("block1",), {}, head, told))
        assert load_probe(tmp_path / "p").explain_layers() == told["layers"]
    for told in ({"layers": [record | change]}, {"layers": 3}, {}):
        save_probe(tmp_path / "p", Probe("single", ("a", "b"), ("block1",), {}, head, told))
        with pytest.raises(WeightsError, match=r"probe '.*p': its records of layers are damaged"):
            load_probe(tmp_path / "p").explain_layers()


def test_a_network_without_layers(tmp_path: Path) -> None:
    probed = probe(write_store(tmp_path / "s.parquet", model="made-up"), tmp_path / "out", protocol="layers")
    assert f"all columns: {TOLD}" in probed.results["notes"]
    assert [record["layer"] for record in load_probe(tmp_path / "out").explain_layers()] == ["all"] * 3


def test_a_store_with_several_pools(tmp_path: Path) -> None:
    codes = draw_codes(200)
    features = make_features(codes, widths={f"block{number}_{pool}": 24 for number in (1, 2) for pool in ("avg", "max")})
    labels = [NAMES[code] for code in codes]
    store = write_probe_store(tmp_path / "s.parquet", labels, features, model=TINY, pool=["avg", "max"])
    told = probe(store, tmp_path / "out", protocol="layers").results["layers"]
    assert len(told["by_layer"]) == 12
    assert told["comparisons"][0]["with"] in ("block2_avg", "block2_max")


def test_one_column(tmp_path: Path) -> None:
    codes = draw_codes(200)
    store = write_probe_store(
        tmp_path / "s.parquet", [NAMES[code] for code in codes], make_features(codes, widths={"block1": 1})
    )
    probed = probe(store, tmp_path / "out", protocol="layers")
    assert [candidate["name"] for candidate in probed.results["candidates"]] == ["block1", "layers"]
    assert [entry["role"] for entry in probed.results["layers"]["comparisons"]] == ["last block", "best by block"]


def test_groups_and_a_column_of_splits(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet")
    parts = np.random.default_rng(1).choice(["train", "val", "test"], 200, p=[0.6, 0.2, 0.2])
    codes = draw_codes(200)
    lines = [f"{row}.jpg,{NAMES[codes[row]]},{parts[row]},{parts[row]}{row % 9}" for row in range(200)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,part,patient", *lines]) + "\n")
    options = {"labels": tmp_path / "l.csv", "split_column": "part", "group_column": "patient"}
    probed = probe(store, tmp_path / "out", protocol="layers", **options)  # type: ignore[arg-type]
    assert probed.results["rows"] == {name: np.count_nonzero(parts == name) for name in ("train", "val", "test")}
    assert probed.results["layers"]["resamples"]["number"] == 4
    assert probe(store, tmp_path / "out", protocol="layers", **options).done_before  # type: ignore[arg-type]
    del options["group_column"]  # the split stays the same, the resamples do not
    with pytest.raises(UsageError, match=r"holds another probe \(settings differ\)"):
        probe(store, tmp_path / "out", protocol="layers", **options)  # type: ignore[arg-type]


def test_a_better_candidate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.probing.layers.SHARES", (0.01,))
    probed = probe(write_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="layers")
    better, own = by_name(probed, probed.results["next"]), by_name(probed, "layers")
    assert own["features"] == 1
    assert better["val"]["top1"] > own["val"]["top1"]
    assert f"{better['name']} is better than layers on the validation rows: top1" in "\n".join(probed.results["notes"])
    assert load_probe(tmp_path / "out").told["name"] == "layers"


def test_standardize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--standardize is for logreg: layers never does so"):
        probe(write_store(tmp_path / "s.parquet"), tmp_path / "out", protocol="layers", standardize=True)


def test_predictions_stop_at_the_last_block_needed(tmp_path: Path) -> None:
    """Blocks after the last kept feature never run, and the scores are those on the store."""
    images = write_classes(tmp_path / "images", 6)
    settings = {
        "model": TINY,
        "weights": write_tiny_weights(tmp_path),
        "device": "cpu",
        "workers": 1,
        "tap": "raw",
        "image_size": 32,
    }
    densefeat.extract(images, tmp_path / "s.parquet", labels="folder", **settings)  # type: ignore[arg-type]
    store = densefeat.open_store(tmp_path / "s.parquet")
    kept = np.array([0, 13, 40])
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    head = LayersHead((12, 6, 6, 12, 6, 6), kept, weight, np.zeros(3, np.float32))
    made = Probe("single", ("class 0", "class 1", "class 2"), ("block1", "block2"), store.provenance, head)
    (tmp_path / "probe").mkdir()
    save_probe(tmp_path / "probe/probe.safetensors", made)
    extractor = load_probe(tmp_path / "probe").extractor(device="cpu")
    ran: list[str] = []
    for name in ("denseblock2", "denseblock3"):
        block = extractor.model.get_submodule(f"features.{name}")
        block.register_forward_hook(lambda _, __, ___, name=name: ran.append(name))
    with torch.no_grad():
        found = extractor([images / store.keys[0]])
    assert list(found) == ["block1", "block2"]
    assert ran in (["denseblock2"], [])  # an engine runs no modules
    result = predict(str(tmp_path / "probe"), images, tmp_path / "out", device="cpu", workers=1)
    expected = made.scores({name: store[name] for name in ("block1", "block2")})
    np.testing.assert_allclose(densefeat.open_store(result.store)["scores"], expected, rtol=1e-3, atol=1e-4)
