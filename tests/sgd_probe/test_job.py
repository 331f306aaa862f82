"""The protocol ``sgd``: training that resumes, on one process or two, on a frozen network; and its report."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from densefeat import FeatureExtractor
from densefeat.base.signals import Interrupted, StopRequest
from densefeat.errors import DensefeatError, UsageError
from densefeat.evaluation import predict
from densefeat.images.sources import open_source
from densefeat.labels.targets import Targets
from densefeat.nets.dense_net import DenseNet
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.candidates import BlockFitter
from densefeat.probing.data import load_data
from densefeat.probing.folder import CHECKPOINTS
from densefeat.probing.probe_file import load_probe
from densefeat.sgd_probe.attentive_heads import ATTENTIVE_RATES
from densefeat.sgd_probe.candidates import _choose_linear
from densefeat.sgd_probe.job import probe_images
from densefeat.sgd_probe.learning import TrainingStream, _match_images, limit_batch_size, open_training_stream, train_heads
from densefeat.sgd_probe.parallel_heads import RATES, ParallelHeads
from densefeat.store.reader import open_store
from densefeat.training.checkpoints import _list_checkpoints, save_checkpoint
from densefeat.training.world import World
from support.helpers import BUNDLED, randomize_statistics
from support.probes import write_class_store
from support.runs import write_table
from support.tiny_net import TINY, write_tiny_weights

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options for a probe that takes a second."""
    weights = write_tiny_weights(tmp_path_factory.mktemp("weights"))
    return dict(model=TINY, weights=weights, epochs=2, batch_size=32, workers=0, device="cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of 32×32 whose colour tells the class, one of four; one of them cannot be read."""
    path = write_table(tmp_path_factory.mktemp("in") / "images.parquet", 96, classes=4, size=32)
    whole = pq.read_table(path)
    rows = whole.to_pylist()
    rows[5]["image"]["bytes"] = b"no image"
    pq.write_table(whole.from_pylist(rows, whole.schema), path, row_group_size=16)
    return path


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    """An extractor of a tiny network."""
    torch.manual_seed(0)
    network = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, stem_type="cifar")
    return FeatureExtractor(randomize_statistics(network), device="cpu", image_size=32)


@pytest.fixture
def stream(table: Path, extractor: FeatureExtractor) -> TrainingStream:
    source = open_source(table, label_column="label")
    labels = np.array(pq.read_table(table)["label"])
    targets = Targets("single", tuple("abcd"), labels.astype(np.int64))
    paths = [item.key for item in source.items(0, 96)]
    return open_training_stream(source, targets, paths, np.arange(96) < 64, extractor, 2, 16, 0, 0, ALONE)


def new_heads(extractor: FeatureExtractor, seed: int = 0) -> ParallelHeads:
    sizes = {name: shape[0] for name, shape in extractor.feature_shapes().items()}
    return ParallelHeads.start(sizes | {"all": sum(sizes.values())}, 4, "single", 16, seed, CPU)


def train(
    stream: TrainingStream,
    extractor: FeatureExtractor,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    stop: StopRequest | None = None,
    identity: str = "this",
) -> ParallelHeads:
    heads = new_heads(extractor, len(_list_checkpoints(folder)))  # another seed where a checkpoint must restore the heads
    train_heads([heads], stream, extractor, folder, identity, ALONE, StopRequest() if stop is None else stop, advance)
    return heads


def test_resumed_training_equals_uninterrupted_and_the_network_stays(
    stream: TrainingStream, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in extractor.model.state_dict().items()}
    (tmp_path / "straight").mkdir()
    straight = train(stream, extractor, tmp_path / "straight")
    assert straight.step == stream.steps == 8
    assert all(torch.equal(value, before[name]) for name, value in extractor.model.state_dict().items())
    assert all(parameter.grad is None for parameter in extractor.model.parameters())
    assert (straight.weights["all"][-1] - new_heads(extractor).weights["all"][-1]).abs().max() > 1e-3

    stop, seen = StopRequest(), [0]

    def advance(images: int) -> None:
        seen[0] += images
        stop.signal = 15 if seen[0] >= 3 * 16 else None

    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted, match="stopped after step 3; the same command resumes") as raised:
        train(stream, extractor, folder, advance, stop)
    assert raised.value.exit_code == 143
    reported: list[int] = []
    again = train(stream, extractor, folder, reported.append)
    assert reported == [3 * 16, *[16] * 5]
    for name, weight in straight.weights.items():
        assert torch.equal(again.weights[name], weight)
        assert torch.equal(again.speeds[name], straight.speeds[name])
    with pytest.raises(UsageError, match="holds another unfinished probe"):
        train(stream, extractor, folder, identity="that")


def test_batches_are_augmented_anew_each_epoch_and_reproducible(stream: TrainingStream) -> None:
    first, second = list(stream.parts(0)), list(stream.parts(4))
    assert len(first) == 8
    for (x, rows), (again, same) in zip(first[4:], second, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(rows, same)
    epochs = [np.concatenate([rows for _, rows in first[part]]) for part in (slice(0, 4), slice(4, 8))]
    assert all(sorted(rows.tolist()) == [-1, *range(5), *range(6, 64)] for rows in epochs)  # -1: the one that cannot be read
    assert not np.array_equal(*epochs)
    pictures = [
        {int(row): image for x, rows in first[part] for image, row in zip(x, rows, strict=True)}
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert all(not torch.equal(pictures[0][row], pictures[1][row]) for row in range(6, 64))


def test_missing_images(table: Path) -> None:
    source = open_source(table, label_column="label")
    paths = [item.key for item in source.items(0, 96)]
    assert _match_images(source, paths[::-1], np.arange(96) >= 90).labels.tolist() == [*range(95, 89, -1), *[-1] * 90]
    with pytest.raises(DensefeatError, match="1 images are missing now, 'gone' first"):
        _match_images(source, [*paths, "gone"], np.ones(97, bool))


def test_no_image_can_be_read(stream: TrainingStream, extractor: FeatureExtractor, tmp_path: Path) -> None:
    stream.images.images.labelled.labels[:] = -1
    stream.images.failures.add(("a\udcff.png", "no image"))
    with pytest.raises(DensefeatError, match=r"none of the training images can be read, the first: a\\xff.png: no image"):
        train(stream, extractor, tmp_path)


def test_batches_of_few_images() -> None:
    assert limit_batch_size(128, 1000, World(0, 3, CPU)) == 126
    assert limit_batch_size(128, 50, World(0, 4, CPU)) == 48
    with pytest.raises(UsageError, match="3 training images and a batch of 128 for 4 processes"):
        limit_batch_size(128, 3, World(0, 4, CPU))


def test_a_whole_probe_and_its_report(table: Path, tmp_path: Path, fast: dict[str, Any]) -> None:
    out = tmp_path / "out"
    probed = probe_images(table, out, label_column="label", **fast)
    results = json.loads((out / "results.json").read_text())
    assert probed.results == results
    assert results["protocol"]["name"] == "sgd"
    assert results["protocol"]["grid"]["lr"] == list(RATES)
    assert results["protocol"]["batch_size"] == 32
    assert "of equals the lowest log loss" in results["protocol"]["criterion"]
    assert [candidate["name"] for candidate in results["candidates"]] == ["block1", "block2", "block3", "all"]
    assert sum(results["rows"].values()) == 95
    for candidate in results["candidates"]:
        assert [setting["lr"] for setting in candidate["tried"]] == list(RATES)
        best = max(candidate["tried"], key=lambda setting: (setting["top1"], -setting["log_loss"]))
        assert candidate["chosen"] == {"lr": best["lr"]}
        assert candidate["val"]["top1"] == best["top1"]
    highest = [candidate["name"] for candidate in results["candidates"] if candidate["chosen"]["lr"] == RATES[-1]]
    assert [note for note in results["notes"] if "highest learning rate" in note] == [
        f"the highest learning rate was the best for {', '.join(highest)}: more epochs may give better heads"
    ][: len(highest)]
    won = next(candidate for candidate in results["candidates"] if candidate["name"] == results["best"])
    assert won["val"]["top1"] > 50
    files = {path.name for path in out.iterdir()}
    assert {"results.json", "report.html", "probe.safetensors", "predictions.csv", "blocks.png", "features"} <= files
    assert CHECKPOINTS not in files

    # the probe file's head gives the predictions, from the features in the store
    tensors, store = load_file(out / "probe.safetensors"), open_store(out / "features")
    x = np.concatenate([store[name] for name in won["columns"]], 1)
    scores = dict(zip(store.keys, x @ tensors["weight"].T + tensors["bias"], strict=True))
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == results["rows"]["test"]
    classes = np.array(results["classes"])
    assert [classes[scores[row["path"]].argmax()] for row in rows] == [row["predicted"] for row in rows]
    assert 100 * np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(won["test"]["top1"])

    again = probe_images(table, out, label_column="label", **fast)
    assert again.done_before
    assert again.results == results
    with pytest.raises(UsageError, match="holds another probe"):
        probe_images(table, out, label_column="label", **fast | {"epochs": 3})


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images whose colour tells the class, one of ten: a few steps are enough for attentive heads alone."""
    return write_table(tmp_path_factory.mktemp("colours") / "images.parquet", 160, classes=10, size=32)


@pytest.fixture(scope="module")
def pooling(fast: dict[str, Any]) -> dict[str, Any]:
    """Options for an attentive probe that takes a second."""
    return fast | {"protocol": "attentive", "label_column": "label", "batch_size": 16}


@pytest.fixture(scope="module")
def attentive(colours: Path, tmp_path_factory: pytest.TempPathFactory, pooling: dict[str, Any]) -> Path:
    """The folder of a finished attentive probe."""
    out = tmp_path_factory.mktemp("attentive") / "out"
    probe_images(colours, out, **pooling)
    return out


def test_an_attentive_probe_and_its_report(attentive: Path, colours: Path, pooling: dict[str, Any]) -> None:
    results = json.loads((attentive / "results.json").read_text())
    candidates = {candidate["name"]: candidate for candidate in results["candidates"]}
    assert list(candidates) == ["block1", "block2", "block3", "all", "block3 attentive", "all attentive"]
    assert results["best"] == "all attentive"
    assert results["protocol"]["name"] == "attentive"
    assert results["protocol"]["grid"] == {"lr": list(RATES), "lr of attentive heads": list(ATTENTIVE_RATES)}
    assert [setting["lr"] for setting in candidates["all attentive"]["tried"]] == list(ATTENTIVE_RATES)
    assert candidates["all attentive"]["columns"] == ["block1", "block2", "block3"]
    assert candidates["all attentive"]["features"] == candidates["all"]["features"]
    difference = candidates["all attentive"]["test"]["top1"] - candidates["block3 attentive"]["test"]["top1"]
    told = f"all attentive minus block3 attentive: top1 {difference:+.4g}"
    assert [note for note in results["notes"] if note.startswith(told)]
    assert all(len(shape) == 1 for shape in open_store(attentive / "features").shapes.values())  # no maps
    assert probe_images(colours, attentive, **pooling).done_before
    with pytest.raises(UsageError, match="holds another probe"):
        probe_images(colours, attentive, **pooling | {"protocol": "sgd"})


def test_the_linear_heads_of_an_attentive_probe_are_those_of_sgd(
    attentive: Path, colours: Path, tmp_path: Path, pooling: dict[str, Any]
) -> None:
    linear = probe_images(colours, tmp_path / "out", **pooling | {"protocol": "sgd"}).results["candidates"]
    for one, other in zip(linear, json.loads((attentive / "results.json").read_text())["candidates"], strict=False):
        assert one["name"] == other["name"]
        losses = ([setting["log_loss"] for setting in each["tried"]] for each in (one, other))
        assert next(losses) == pytest.approx(next(losses), rel=1e-3)


def test_predict_repeats_the_predictions_of_an_attentive_probe(
    attentive: Path, colours: Path, tmp_path: Path, pooling: dict[str, Any]
) -> None:
    probe = load_probe(attentive)
    assert isinstance(probe.head, AttentiveHead)
    assert probe.provenance["pool"] == ["none"]
    predict(str(attentive), colours, tmp_path / "new", weights=pooling["weights"], device="cpu", workers=1)
    with open(tmp_path / "new/predictions.csv", newline="") as file:
        predicted = {row["path"]: row for row in csv.DictReader(file)}
    with open(attentive / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == probe.told["rows"]["test"]
    for row in rows:
        assert predicted[row["path"]]["predicted"] == row["predicted"]
        for name in ("probability", "ood"):  # which is told by the maps' averages
            assert float(predicted[row["path"]][name]) == pytest.approx(float(row[name]), abs=1e-4)


def test_an_attentive_probe_resumes(
    attentive: Path, colours: Path, tmp_path: Path, pooling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def save_and_stop(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        saved.append(arguments)
        raise Interrupted("stopped", 143)

    with monkeypatch.context() as patched:
        patched.setattr("densefeat.sgd_probe.learning.save_checkpoint", save_and_stop)
        with pytest.raises(Interrupted):
            probe_images(colours, tmp_path / "out", **pooling)
    results = probe_images(colours, tmp_path / "out", **pooling).results
    assert saved[0][1]["step"] == 7
    assert results["candidates"] == json.loads((attentive / "results.json").read_text())["candidates"]


def test_test_images_of_an_attentive_probe(colours: Path, tmp_path: Path, pooling: dict[str, Any]) -> None:
    others = write_table(tmp_path / "test.parquet", 24, size=32, seed=5)
    options = pooling | {"epochs": 1}
    results = probe_images(colours, tmp_path / "out", test=others, **options).results
    assert results["rows"]["test"] == 24
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels == [f"class {label}" for label in pq.read_table(others)["label"].to_pylist()]
    with pytest.raises(UsageError, match="is a store, and protocol 'attentive' needs maps of the test images"):
        probe_images(colours, tmp_path / "two", test=tmp_path / "out/test-features", **options)
    with pytest.raises(UsageError, match="pool 'max': protocol 'attentive' reads whole maps"):
        probe_images(colours, tmp_path / "two", pools="max", **options)
    with pytest.raises(UsageError, match="protocol 'knn': one of sgd, attentive"):
        probe_images(colours, tmp_path / "two", **options | {"protocol": "knn"})
    assert not (tmp_path / "two").exists()


def test_multi_labels_of_a_file(make_folder: Callable[..., Path], tmp_path: Path, fast: dict[str, Any]) -> None:
    images = make_folder({"in": 40})
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    with open(tmp_path / "labels.csv", "w") as file:
        file.write(
            "path,kind\n" + "".join(f"{name},{'a|b' if i < 10 else 'a' if i < 20 else 'c|b'}\n" for i, name in enumerate(names))
        )
    results = probe_images(
        images, tmp_path / "out", labels=tmp_path / "labels.csv", label_column="kind", **fast, pools="avg,max"
    ).results
    assert results["task"] == "multi"
    assert results["classes"] == ["a", "b", "c"]
    assert "summed" in results["protocol"]["objective"]
    assert len(results["candidates"]) == 7
    assert {"block1_avg", "block3_max", "all"} <= {candidate["name"] for candidate in results["candidates"]}
    assert max(candidate["val"]["map"] for candidate in results["candidates"]) > 50
    attentive = probe_images(
        images, tmp_path / "two", protocol="attentive", labels=tmp_path / "labels.csv", label_column="kind", **fast
    ).results["candidates"]
    assert [candidate["name"] for candidate in attentive[-2:]] == ["block3 attentive", "all attentive"]
    assert max(candidate["val"]["map"] for candidate in attentive[-2:]) > 50


def test_split_group_and_task_of_a_file(table: Path, tmp_path: Path, fast: dict[str, Any]) -> None:
    rows = pq.read_table(table)["label"].to_pylist()
    source = open_source(table, label_column="label")
    keys = [item.key for item in source.items(0, 96)]
    lines = [
        f"{key},{label},{'test' if i < 24 else 'train'},{i // 6}" for i, (key, label) in enumerate(zip(keys, rows, strict=True))
    ]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,part,group", *lines]))
    options = dict(labels=tmp_path / "l.csv", task="multi", split_column="part", group_column="group")
    results = probe_images(table, tmp_path / "out", **options, **fast | {"epochs": 1}).results
    assert results["task"] == "multi"
    assert results["rows"]["test"] == 23  # one cannot be read
    assert results["rows"]["val"] % 6 == 0
    rough, *others = results["notes"]
    assert rough == "only 6 validation and 23 test rows: figures and choices are rough"
    assert all("highest learning rate" in note for note in others)
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [key for i, key in enumerate(keys[:24]) if i != 5]


def make_fitter(folder: Path) -> tuple[ParallelHeads, BlockFitter]:
    """Heads at their start, and a fitter with rows to choose them on."""
    data = load_data([open_store(write_class_store(folder / "s.parquet", 60))])
    labelled = data.labelled
    heads = ParallelHeads.start({"block1": 4}, 3, "single", 16, 0, CPU)
    return heads, BlockFitter("sgd", data.columns, labelled.targets, labelled.rows, data.parts, 0, lambda _: None)


def test_rates_that_diverged_are_left_out(tmp_path: Path) -> None:
    heads, fitter = make_fitter(tmp_path)
    heads.weights["block1"][1] = torch.nan
    heads.weights["block1"][2, 0, 0] = torch.inf
    heads.weights["block1"][3] = 3e38
    fitted = _choose_linear(heads, "block1", fitter, ("block1",))
    assert [setting["lr"] for setting in fitted.tried] == [RATES[0], *RATES[4:]]
    heads.weights["block1"][:] = torch.nan
    with pytest.raises(DensefeatError, match="heads on 'block1' diverged at all 13 learning rates: use --protocol ridge"):
        _choose_linear(heads, "block1", fitter, ("block1",))


def test_unusable_input(make_folder: Callable[..., Path], tmp_path: Path, fast: dict[str, Any]) -> None:
    images = make_folder({"in": 12})
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{name},{i + 0.5}\n" for i, name in enumerate(names)))
    with pytest.raises(UsageError, match="protocol 'sgd' predicts classes"):
        probe_images(images, tmp_path / "out", labels=tmp_path / "labels.csv", **fast)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds other files than a probe"):
        probe_images(images, tmp_path / "used", **fast)
    with pytest.raises(UsageError, match="'in'"):
        probe_images(images, tmp_path / "other", **fast)


SCRIPT = """
import sys
from densefeat.sgd_probe.job import probe_images
options = dict(model={model!r}, label_column="label", epochs=2, batch_size=32, workers=0, device="cpu")
probe_images(sys.argv[1], sys.argv[2], protocol={protocol!r}, **options)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
@pytest.mark.parametrize("protocol", ["sgd", "attentive"])
def test_two_processes_learn_what_one_does(protocol: str, table: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(SCRIPT.format(model=BUNDLED, protocol=protocol))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    for name, before in (("one", [sys.executable]), ("two", launch)):
        command = [*before, tmp_path / "probe.py", table, tmp_path / name]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert ended.returncode == 0, ended.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert len(one["candidates"]) == (4 if protocol == "sgd" else 6)
    for first, second in zip(one["candidates"], two["candidates"], strict=True):
        tried = [candidate.pop("tried") for candidate in (first, second)]
        assert first == second
        assert [setting.pop("log_loss") for setting in tried[0]] == pytest.approx(
            [s.pop("log_loss") for s in tried[1]], abs=1e-5
        )
        assert tried[0] == tried[1]
    assert one["split_sha256"] == two["split_sha256"]
    heads = [load_file(tmp_path / name / "probe.safetensors") for name in ("one", "two")]
    assert np.abs(heads[0]["weight"] - heads[1]["weight"]).max() < 1e-5
    assert np.abs(heads[0]["weight"]).max() > 1e-2
