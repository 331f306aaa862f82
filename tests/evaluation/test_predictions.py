"""Predictions of runs, probes and named networks: the right class for the right file, also among damaged files."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import densefeat
from densefeat import UsageError, WeightsError
from densefeat.evaluation.predictions import predict
from densefeat.finetuning.setup import finetune
from densefeat.probe.job import probe
from support.helpers import BUNDLED
from support.runs import tiny_finetuning, write_classes


def read_rows(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "classes", 10)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classifier is a probe's, and whose predictions are right."""
    out = tmp_path_factory.mktemp("run")
    finetune(tiny_finetuning(out, train=str(data), mode="head", epochs=1, warmup_epochs=0), out / "run", "cpu")
    return out / "run"


def test_a_run_on_a_folder_with_broken_files(data: Path, run: Path, tmp_path: Path) -> None:
    images = tmp_path / "new"
    shutil.copytree(data, images)
    (images / "class 0/000.png").write_bytes(b"nothing")
    Image.open(images / "class 1/001.png").save(images / "class 1" / 'ä, "x".png')
    result = predict(str(run), images, tmp_path / "out", device="cpu", batch_size=7)
    assert (result.rows, result.failures) == (30, 1)
    assert result.counts == {"class 1": 11, "class 2": 10, "class 0": 9}
    rows = read_rows(result.table)
    assert [row["path"] for row in rows] == sorted(
        str(file.relative_to(images)) for file in images.rglob("*.png") if file.name != "000.png" or "class 0" not in str(file)
    )
    assert all(row["predicted"] == row["path"].partition("/")[0] for row in rows)
    model = densefeat.load_run(run)
    extractor = densefeat.FeatureExtractor(str(run), device="cpu", decoder="pillow")
    x = extractor.prepare([images / row["path"] for row in rows])
    with torch.no_grad():
        chances = model(x).softmax(1).max(1).values
    assert [float(row["score"]) for row in rows] == pytest.approx(chances.tolist(), abs=1e-4)
    again = predict(str(run), images, tmp_path / "out", device="cpu")
    assert (again.rows, again.counts) == (result.rows, result.counts)
    assert densefeat.open_store(result.store).provenance["model"] == str(run)


def test_another_network_does_not_resume(data: Path, run: Path, tmp_path: Path) -> None:
    predict(str(run), data, tmp_path / "out", device="cpu")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    tensors = load_file(run / "model.safetensors")
    save_file(tensors | {"classifier.bias": tensors["classifier.bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="weights_sha256"):
        predict(str(other), data, tmp_path / "out", device="cpu")


def test_a_probe(data: Path, tmp_path: Path) -> None:
    densefeat.extract(data, tmp_path / "store", model=BUNDLED, labels="folder", device="cpu")
    probe(tmp_path / "store", tmp_path / "probe")
    for model in (tmp_path / "probe", tmp_path / "probe/probe.safetensors"):
        result = predict(str(model), data, tmp_path / f"out {model.name}", device="cpu")
        rows = read_rows(result.table)
        assert all(row["predicted"] == row["path"].partition("/")[0] for row in rows)
        assert result.counts == {"class 0": 10, "class 1": 10, "class 2": 10}


def test_several_labels(data: Path, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.png"))
    tags = {"class 0": "even|low", "class 1": "low", "class 2": "|"}
    lines = [f"{file},{tags[file.parent.name]}" for file in files]
    (tmp_path / "tags.csv").write_text("path,label\n" + "\n".join(lines))
    shutil.copytree(data, tmp_path / "data")
    lines = [f"data/{file.relative_to(data)},{tags[file.parent.name]}" for file in files]
    (tmp_path / "tags.csv").write_text("path,label\n" + "\n".join(lines))
    recipe = tiny_finetuning(
        tmp_path, train=str(tmp_path / "tags.csv"), label_column="label", mode="head", epochs=1, warmup_epochs=0
    )
    finetune(recipe, tmp_path / "run", "cpu")
    result = predict(str(tmp_path / "run"), data, tmp_path / "out", device="cpu")
    rows = read_rows(result.table)
    assert [row["predicted"] for row in rows] == [tags[row["path"].partition("/")[0]] for row in rows]
    for row in rows:
        chances = [float(chance) for chance in row["score"].split("|") if chance]
        assert len(chances) == len([name for name in row["predicted"].split("|") if name])
        assert all(0.5 <= chance <= 1 for chance in chances)


def test_a_named_network(data: Path, tmp_path: Path) -> None:
    result = predict(BUNDLED, data / "class 0", tmp_path / "out", device="cpu")
    assert sum(result.counts.values()) == 10
    assert all(name.startswith("n0") for name in result.counts)  # WordNet's names, from the metadata of the weights file
    store = densefeat.open_store(result.store)
    assert store["scores"].shape == (10, 200)
    assert np.isfinite(store["scores"]).all()


def test_unknown_models(data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for model, kind, message in (
        ("nothing", UsageError, "unknown model 'nothing'"),
        (str(tmp_path / "file.txt"), WeightsError, "damaged, or not a probe"),
        (str(tmp_path / "empty"), UsageError, "this folder holds no config.json"),
    ):
        with pytest.raises(kind, match=message):
            predict(model, data, tmp_path / "out", device="cpu")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="holds other files than predictions"):
        predict(str(run), data, tmp_path, device="cpu")


def test_a_config_without_a_network(data: Path, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    config = json.loads((broken / "config.json").read_text())
    config["densefeat"]["head"] = "tree"
    del config["densefeat_sha256"]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="head 'tree' is none of linear, mlp, cross-layer: update densefeat"):
        predict(str(broken), data, tmp_path / "out", device="cpu")
