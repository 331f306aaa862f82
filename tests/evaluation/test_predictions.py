"""Predictions of runs, probes and named networks: the right class for the right file, also among damaged files."""

import csv
import json
import shutil
from dataclasses import replace
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
from densefeat.probing.job import probe
from densefeat.probing.probe_file import save_probe
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
    assert [float(row["probability"]) for row in rows] == pytest.approx(chances.tolist(), abs=1e-4)
    record = {"kind": "densefeat predictions", "sha256": 5}  # of another form than densefeat writes: it counts as none
    (tmp_path / "out/.predictions.json").write_text(json.dumps(record))
    again = predict(str(run), images, tmp_path / "out", device="cpu")
    assert (again.rows, again.counts) == (result.rows, result.counts)
    assert densefeat.open_store(result.store).provenance["model"] == str(run)


def test_an_empty_folder_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no file with an image's extension"):
        predict(str(run), tmp_path / "none", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


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


@pytest.fixture(scope="module")
def made_probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A probe of three kinds of noisy colour, and new images of them, of which one is unlike all."""
    folder, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for kind in range(3):
        for part, count in (("train", 60), ("new", 5)):
            (folder / part / f"class {kind}").mkdir(parents=True)
            for row in range(count):
                pixels = generator.normal(110 + 30 * np.eye(3)[kind], 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"class {kind}/{row:03}.png")
    lines = (np.indices((32, 32)).sum(0) % 16 < 8) * 255
    Image.fromarray(np.stack([lines, 255 - lines, lines], 2).astype(np.uint8)).save(folder / "new/strange.png")
    densefeat.extract(folder / "train", folder / "store", model=BUNDLED, labels="folder", device="cpu")
    parts = np.resize(["train", "train", "val", "val", "test"], 180)
    store = densefeat.open_store(folder / "store")
    rows = zip(store.keys.tolist(), store.labels.tolist(), parts.tolist(), strict=True)
    (folder / "parts.csv").write_text("path,label,part\n" + "\n".join(map(",".join, rows)))
    probe(folder / "store", folder / "probe", labels=folder / "parts.csv", split_column="part")
    return folder / "probe", folder / "new"


def test_promises_of_a_probe(made_probe: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = made_probe
    result = predict(str(model), images, tmp_path / "out", device="cpu", risk=0.3, level=0.9)
    rows = read_rows(result.table)
    assert list(rows[0]) == ["path", "predicted", "probability", "ood", "answered", "set"]
    assert result.answered == sum(row["answered"] == "yes" for row in rows)
    loaded, store = densefeat.load_probe(model), densefeat.open_store(result.store)
    assert list(store.shapes) == ["scores", "ood"]
    files = [images / row["path"] for row in rows]
    made = loaded.predict(files, risk=0.3, level=0.9, device="cpu")
    assert made.labels == [row["predicted"] for row in rows]
    assert made.probability is not None
    assert made.ood is not None
    assert made.answered is not None
    np.testing.assert_allclose([float(row["probability"]) for row in rows], made.probability, rtol=1e-3)
    np.testing.assert_allclose([float(row["ood"]) for row in rows], made.ood, atol=1e-3)
    assert [row["answered"] for row in rows] == ["yes" if given else "no" for given in made.answered]
    assert [row["set"].split("|") for row in rows] == made.sets
    by_path = {row["path"]: float(row["ood"]) for row in rows}
    assert by_path.pop("strange.png") == pytest.approx(1 / 73, abs=1e-4)  # the least that 72 validation rows allow
    assert np.mean(list(by_path.values())) > 0.2
    again = predict(str(model), images, tmp_path / "out", device="cpu")  # nothing is computed, the table is written again
    assert (again.answered, list(read_rows(again.table)[0])) == (None, ["path", "predicted", "probability", "ood"])
    arrays = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_allclose(loaded.predict(arrays, device="cpu").probability, made.probability, rtol=1e-3)
    np.testing.assert_allclose(loaded.predict(np.stack(arrays), device="cpu").ood, made.ood, atol=1e-3)
    with pytest.raises(UsageError, match=r"an array of shape \(32, 32, 3\) and float64 is not an image"):
        loaded.predict([arrays[0] / 255.0])
    with pytest.raises(UsageError, match=r"an array of shape \(2, 32, 32\) and uint8 is not an image"):
        loaded.predict(np.stack(arrays[:2])[..., 0])  # two grey images, which an array cannot say


def test_promises_that_cannot_be_made(made_probe: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    model, images = made_probe
    for path, options, message in (
        (model, {"risk": 0.01}, "72 validation rows cannot promise that at most 1 % of the answers are wrong: that takes 299"),
        (model, {"level": 0.99}, "72 validation rows cannot promise a coverage of 99 %: that takes 99 at least"),
        (model, {"risk": 5}, "a risk of 5: give the share of answers that may be wrong"),
        (run, {"risk": 0.1}, "a risk of 0.1 cannot be promised: this model keeps no validation rows"),
        (run, {"level": 0.9}, "sets of level 0.9 cannot be promised"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(str(path), images, tmp_path / "out", device="cpu", **options)
        assert not (tmp_path / "out").exists()


def test_sets_of_classes_whose_names_cannot_be_told_apart(made_probe: tuple[Path, Path], tmp_path: Path) -> None:
    made = densefeat.load_probe(made_probe[0])
    save_probe(tmp_path / "probe.safetensors", replace(made, classes=("a", "a|b", "b")))
    with pytest.raises(UsageError, match=r"class 'a\|b' has a \|, which stands between the classes of a set"):
        predict(str(tmp_path / "probe.safetensors"), made_probe[1], tmp_path / "out", device="cpu", level=0.9)


def test_a_table_of_an_earlier_version_is_replaced(made_probe: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = made_probe
    table = predict(str(model), images, tmp_path / "out", device="cpu").table
    (tmp_path / "out/.predictions.json").unlink()
    table.write_text("path,predicted,score\na.png,class 0,0.5\n")
    predict(str(model), images, tmp_path / "out", device="cpu")
    assert table.read_text().startswith("path,predicted,probability,ood\n")


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
        chances = [float(chance) for chance in row["probability"].split("|") if chance]
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
