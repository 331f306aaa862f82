"""Every benchmark runs, small, and prints its tables."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.helpers import BUNDLED
from support.runs import write_table
from support.segments import write_textures

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


def run_script(script: str, *arguments: object) -> str:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
    return finished.stdout


def run_report(folder: Path, script: str, *arguments: object) -> dict[str, Any]:
    """The numbers of a run that also wrote them to a file."""
    run_script(script, *arguments, "--json", folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    assert report["machine"]["instruction_sets"]
    return report


def by_arm(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in rows}


def test_extract(photo_folder: Path, tmp_path: Path) -> None:
    images = ("--images", photo_folder)
    report = run_report(tmp_path, "extract.py", "decode", *images, "--count", 2, "--rounds", 1)
    assert list(by_arm(report["decode and resize"])) == ["timm on Pillow", "decoder pillow", "decoder torchvision"]
    assert report["mean pixel difference"] < 0.1
    assert len(report["embeddings, torchvision to pillow"]) == 3 + 4
    report = run_report(tmp_path, "extract.py", "precision", *images, "--count", 2)
    assert all(0.99 < row["least"] <= row["mean"] < 1 for row in report["bf16 to fp32"])
    options = ("--model", BUNDLED, "--count", 6, "--batch-size", 3, "--rounds", 1)
    arms = by_arm(run_report(tmp_path, "extract.py", "job", *images, *options)["images to features"])
    assert arms["allowed"]["seconds"] == pytest.approx(arms["decode"]["seconds"] + arms["network"]["seconds"])
    assert arms["timm loop"]["rate"] > 0


def test_checksums(tmp_path: Path) -> None:
    report = run_report(tmp_path, "checksums.py", "--rows", 300, "--rounds", 1)
    for name in ("block1", "block4"):
        arms = by_arm(report[name])
        assert list(arms) == ["no check", "XXH3 of chunks (ours)", "Parquet's of pages", "SHA-256"]
        assert all(arm["rate"] > 0 for arm in arms.values())


def test_scale(photo_folder: Path, tmp_path: Path) -> None:
    options = ["--images", photo_folder, "--model", BUNDLED, "--count", 4, "--listed", 200, "--rounds", 1]
    report = run_report(tmp_path, "scale.py", *options, "--network-rate", 1e6)
    rates = {row["stage"]: row for row in report["rates"]}
    assert sum(row.get("share", 0) for row in report["rates"]) == pytest.approx(100)
    this, unfed, fed = report["time"][-3:]
    assert this["images"] == 10**9
    assert [row["bottleneck"] for row in (this, unfed)] == ["network", "decode"]
    assert this["hours"] > unfed["hours"] > fed["hours"]
    storage = [row for row in report["storage"] if row["images"] == 10**9]
    assert storage[0]["stored"] == "all blocks, float32"
    assert storage[0]["gb"] == pytest.approx(rates["write, all blocks, float32"]["row_bytes"])


def test_channels(tmp_path: Path) -> None:
    write_table(tmp_path / "cifar.parquet", 120, classes=3, size=32)
    rows = run_report(tmp_path, "channels.py", "--data", tmp_path / "cifar.parquet", "--images", 100)["accuracy in five folds"]
    assert [row["channels"] for row in rows] == [
        "red, green, blue", "blue, green, red", "green, repeated", "red and blue, first layer adapted",
    ]  # fmt: skip
    assert all(0 <= row["accuracy"] <= 100 for row in rows)


def test_memory(tmp_path: Path) -> None:
    options = ["--networks", "densenet40_k12,densenet121", "--batch-size", 1, "--rounds", 1, "--time"]
    report = run_report(tmp_path, "memory.py", *options)
    rows = report["held for the backward pass"]
    assert [row["way"] for row in rows] == ["plain", "timm", "memory_efficient"] * 2
    for plain, timm, efficient in (rows[:3], rows[3:]):
        assert plain["megabytes"] > 2 * timm["megabytes"] > 2.4 * efficient["megabytes"]
    assert by_arm(report["densenet121"])["plain"]["ratio"]["median"] == 1


def test_own_process(tmp_path: Path) -> None:
    options = ("--works", "densenet_bc100_k12-evaluation", "--threads", "1,2", "--rounds", 1)
    report = run_report(tmp_path, "own_process.py", *options)
    one, two = (rows for key, rows in report.items() if "threads: " in key)
    assert [list(by_arm(rows)) for rows in (one, two)] == [["default", "settled"], ["default", "memory", "settled"]]
    assert all(row["cpu"] > 0 and row["seconds"] > 0 and 0 <= row["kernel"] <= 1 and row["peak"] > 0 for row in one + two)


def test_proof(tmp_path: Path) -> None:
    (row,) = run_report(tmp_path, "proof.py", "--models", "resnet10t", "--batch", 2)["found"]
    assert row["backend"] == "openvino"
    assert row["difference"] < 1e-5
    assert row["speed"] > 0


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    write_table(tmp_path / "cifar10-train.parquet", 66, size=32, seed=1)
    write_table(tmp_path / "cifar10-test.parquet", 21, size=32, seed=2)
    return tmp_path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes without the packages that a machine with only this repository and torch may lack."""
    hidden = ["pydantic", "datasets", "densefeat_recipes", "matplotlib", "tensorboard"]
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


def results_options(data: Path, name: str) -> list[object]:
    folders = ["--data", data, "--runs", data / "runs", "--results", data / "results"]
    return ["results", *folders, "--device", "cpu", "--only", name]


def test_training_speed(tmp_path: Path) -> None:
    options = ["--network", "densenet40_k12", "--batch-size", 2, "--steps", 2, "--rounds", 1]
    report = run_report(tmp_path, "training.py", "speed", *options)
    assert "1,019,722 parameters" in report["title"]
    arms = by_arm(report["training steps"])
    assert list(arms) == ["timm", "ours", "memory_efficient"]
    assert min(arm["rate"] for arm in arms.values()) > 0


def test_trial(small_cifar: Path, tmp_path: Path) -> None:
    places = [f"{key}={small_cifar / f'cifar10-{name}.parquet'}" for key, name in (("train", "train"), ("val", "test"))]
    changes = ["cuda_graph=false", "batch_size=8", "model=densefeat_densenet40_k12"]
    options = ["--threads", "1", "--sizes", "16,32", "--steps", 2]
    rows = by_arm(run_report(tmp_path, "trial.py", "cifar10_fast", *places, *changes, *options)["steps"])
    assert [name for name in rows if "float32" in name] == [f"{size} pixels, float32, threads: 1" for size in (16, 32)]
    assert min(row["rate"] for row in rows.values()) > 0


def test_training_results(small_cifar: Path, bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cifar10_densenet40_k12_ten_epochs"
    options, kept = results_options(small_cifar, name), small_cifar / "results" / name
    assert "incomplete: 1.0 of 10, judged at 1.0 | 21 |" in run_script("training.py", *options, "--steps", 2)
    assert {path.name for path in kept.iterdir()} == {"recipe.yaml", "metrics.jsonl", "device.json"}
    assert "\ntrain: cifar10-train.parquet\n" in (kept / "recipe.yaml").read_text()
    run_script("training.py", *options)
    top1 = json.loads((kept / "results.json").read_text())["val"]["top1"]
    row = f"| {name} | densefeat_densenet40_k12 | 10 | 21 | {top1:.2f} | {100 - top1:.2f} |"
    assert row in (small_cifar / "results/README.md").read_text()
    monkeypatch.delenv("PYTHONPATH")  # a machine with matplotlib draws the curves that that one could not draw
    assert run_script("training.py", *options, "--minutes", 0) == run_script("training.py", *options) == ""
    assert (kept / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_training_results_stops_its_process(small_cifar: Path) -> None:
    name = "cifar10_densenet40_k12"
    options, run = results_options(small_cifar, name), small_cifar / "runs" / name
    assert run_script("training.py", *options, "--minutes", 0.005) == f"{name}\n"  # over before there is anything to save
    command = [sys.executable, BENCHMARKS / "training.py", *map(str, options), "--minutes", "60"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)  # the training process holds the other end too: it has ended
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command" in errors
    assert list((run / "checkpoints").iterdir())


def test_heads_logreg(tmp_path: Path) -> None:
    options = ("--rows", 400, "--features", 24, "--classes", 3, "--rounds", 1)
    arms = by_arm(run_report(tmp_path, "heads.py", "logreg", *options)["logistic regression"])
    own, tight = arms["densefeat"], arms["scikit-learn, tol 1e-6"]
    assert own["times"] == 1
    assert abs(own["accuracy"] - tight["accuracy"]) < 3  # on so few rows C is not chosen by accuracy


def test_heads_cross_layer(small_cifar: Path) -> None:
    options = ["--data", small_cifar, "--out", small_cifar / "out", "--rows", 40, "--epochs", 2, "--width", 8, "--seeds", 2]
    report = run_report(small_cifar, "heads.py", "cross-layer", *options)
    assert report["title"].startswith("40 training and 21 test images, ")
    assert f"maps: {61 * 858 * 64 * 2:,} bytes" in report["title"]
    heads = {row["head"]: row for row in report["heads"]}
    assert list(heads)[-1] == "cross-layer"
    assert heads["linear, all blocks"]["parameters"] == 859 * 10
    assert sum(report["block usage"]) == pytest.approx(1)
    assert {path.name for path in (small_cifar / "out").iterdir()} == {"block_usage.png", "block_usage.svg"}


def test_heads_finetune(small_cifar: Path) -> None:
    options = ("--data", small_cifar, "--classes", "0,1,2", "--images", 4, "--test", 2)
    rows = {
        row["what"]: row["top1"] for row in run_report(small_cifar, "heads.py", "finetune", *options)["probe and fine-tune"]
    }
    assert {"finetune, head", "finetune, defaults", "finetune, shifts, no crops"} < rows.keys()
    assert all(0 <= accuracy <= 100 for accuracy in rows.values())


def test_protocols(small_cifar: Path, bare: None) -> None:
    (small_cifar / "tiles/train/good").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(24):
        folder = small_cifar / "tiles" / ("train/good" if number < 6 else f"test/{('good', 'crack')[number % 2]}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 30), np.uint8)).save(folder / f"{number}.png")
    out = small_cifar / "out"
    options = ["--data", small_cifar, "--out", out, "--images", 40, "--test", 20, "--epochs", 1, "--finetune-epochs", 1]
    table = run_report(small_cifar, "protocols.py", *options, "--sets", "cifar10", "--ways", "linear,attentive,cross-layer")
    rows = {row["way"]: row for row in table["cifar10"]}
    assert list(rows) == [
        "last block, linear", "all blocks, linear", "last block, linear by SGD", "all blocks, linear by SGD",
        "last block, attentive", "all blocks, attentive", "cross-layer head",
    ]  # fmt: skip
    assert {row["of"] for row in rows.values()} == {len(list((out / "cifar10/images/test").glob("*/*")))}
    assert all(row["top1"] == 100 * row["right"] / row["of"] and row["minutes"] > 0 for row in rows.values())
    kept = (out / "results.jsonl").read_text()
    run_script("protocols.py", *options, "--sets", "cifar10", "--ways", "linear")  # is there already
    assert (out / "results.jsonl").read_text() == kept
    table = run_report(small_cifar, "protocols.py", *options, "--sets", "tiles", "--ways", "linear,fine-tuning")
    assert [row["way"] for row in table["tiles"]] == ["last block, linear", "all blocks, linear", "fine-tuning"]
    parts = {part: len(list((out / "tiles/images" / part).glob("*/*"))) for part in ("train", "val", "test")}
    assert sum(parts.values()) == 24
    assert parts["test"] == 10  # of 24 files, 40 %


def test_speed(tmp_path: Path) -> None:
    options = ["--models", BUNDLED, "--batches", "1,2", "--arms", "hooks,reference", "--precision", "fp32", "--rounds", 2]
    output = run_script("speed.py", *options, "--steps", 1, "--json", tmp_path / "speed.json")
    assert output.count(f"### {BUNDLED}, batch ") == 2
    assert "| densefeat reference, fp32 | " in output
    assert "| arm | densenet_bc100_k12, 1 | densenet_bc100_k12, 2 |" in output.split("by network and batch", 1)[1]
    comparisons = json.loads((tmp_path / "speed.json").read_text())["comparisons"]
    assert [comparison["batch"] for comparison in comparisons] == [1, 2]
    assert all(comparison["arms"][0]["ratio"]["median"] == 1 for comparison in comparisons)


def test_cpu_engine(tmp_path: Path) -> None:
    report = run_report(tmp_path, "cpu_engine.py", "--rounds", 1, "--least", 0, "--batch", 2)
    for idea in ("norm and ReLU", "DelugeNet's sum", "a pass of 2", "changed weights"):
        names = [name for name in report if idea in name]
        assert len(names) == (1 if idea == "changed weights" else 2)
        assert all(len(report[name]) == 2 for name in names)


def test_map(tmp_path: Path) -> None:
    report = run_report(tmp_path, "map.py", "--rows", 60, "--rounds", 1)
    assert min(report["size"]["page"], report["load"], *report["pan"]) > 0


def test_certainty(tmp_path: Path, bare: None) -> None:
    for name, rows, seed in (("cifar10-train", 180, 1), ("cifar10-test", 150, 2), ("sign-digits", 180, 3)):
        write_table(tmp_path / f"{name}.parquet", rows, classes=3, size=32, seed=seed)
    options = ("--data", tmp_path, "--rows", 180)
    report = run_report(tmp_path, "certainty.py", "promises", *options, "--resplits", 20, "--refits", 2)
    tables = [value for key, value in report.items() if "splits" in key]
    assert [[row["protocol"] for row in table] for table in tables] == [["logreg", "knn", "ridge"] * 2] * 2
    assert all(0 <= row["coverage"] <= 100 and 1 <= row["size"] <= 3 for table in tables for row in table)
    rows = run_report(tmp_path, "certainty.py", "outliers", *options)["outliers"]
    assert [(row["learnt"], row["other"]) for row in rows] == [("CIFAR-10", "sign digits"), ("sign digits", "CIFAR-10")]
    assert all(0 <= row["all"] <= 1 for row in rows)


def test_evidence(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 60, classes=3, size=32, seed=1)
    write_table(tmp_path / "test.parquet", 6, classes=3, size=32, seed=2)
    options = ("--data", tmp_path, "--train", "train.parquet", "--test", "test.parquet", "--images", 4)
    report = run_report(tmp_path, "evidence.py", *options)
    for head in ("the last block", "all blocks"):
        rows = report[f"a linear head on {head}"]
        assert [row["order"] for row in rows if row["order"] != "Grad-CAM"] == ["random", "evidence"]
        assert all(0 <= row[kind] <= 1 for row in rows for kind in ("deletion", "insertion"))


def test_anomaly(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("train/good", 40), ("test/good", 3), ("test/hole", 3), ("masks/hole", 3)):
        (tmp_path / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.zeros((36, 48), np.uint8) if "masks" in name else generator.integers(90, 160, (36, 48), np.uint8)
            pixels[10:20, 10:24] = {"masks/hole": 255, "test/hole": 0}.get(name, pixels[10:20, 10:24])
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    rows = by_arm(run_report(tmp_path, "anomaly.py", "--data", tmp_path, "--size", 32, "--images", 40)["found"])
    assert list(rows) == ["densefeat patchcore", "densefeat padim"]
    assert all(row["image_auroc"] == 100 and row["rate"] > 0 for row in rows.values())


def test_segments(tmp_path: Path) -> None:
    write_textures(tmp_path / "data", 8)
    for path in (tmp_path / "data/masks").iterdir():  # whose top rows are 255
        with Image.open(path) as mask:
            Image.fromarray(np.asarray(mask) % 255).save(path)
    options = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--image-size", 32, "--epochs", 1)
    report = run_report(tmp_path, "segments.py", *options)
    rows = {row["way"]: row for table in report.values() if isinstance(table, list) for row in table}
    assert {"logreg, block1", "logreg, all", "knn, all", "U-Net, epoch 1 of 1"} < rows.keys()
    assert abs(rows["logreg, all"]["mean_iou"] - rows["scikit-learn, all, one C"]["mean_iou"]) < 3
    assert all(0 <= row["low"] <= row["mean_iou"] <= row["high"] <= 100 for row in rows.values())


def test_int8(tmp_path: Path) -> None:
    for seed, name in enumerate(("cifar10-train", "cifar10-test", "clothing-train", "clothing-test")):
        write_table(tmp_path / f"{name}.parquet", 400, classes=3, size=32, seed=seed)
    rows = run_report(tmp_path, "int8.py", "speed", "--data", tmp_path, "--rounds", 1)["speed"]
    assert [row["network"].split(",")[0] for row in rows] == [BUNDLED, "densefeat_densenet121"]
    assert all(row[kind]["least"] > 0 for row in rows for kind in ("wall", "cpu"))
    report = run_report(tmp_path, "int8.py", "accuracy", "--data", tmp_path, "--train", 400, "--test", 100)
    tables = [value for key, value in report.items() if "test images" in key]
    assert [[row["probe"] for row in table] for table in tables] == [
        ["fitted and tested in fp32", "fitted and tested in int8", "fitted in int8, tested in fp32"]
    ] * 2
    tables += [value for key, value in report.items() if "folds" in key]
    assert len(tables) == 4
    assert all(row["low"] <= row["difference"] <= row["high"] for table in tables for row in table[1:])


def test_store(small_cifar: Path, tmp_path: Path) -> None:
    report = run_report(
        tmp_path, "store.py", "--data", small_cifar, "--rows", 300, "--width", 400, "--singles", 2, "--rounds", 1
    )
    for dtype in ("float32", "float16"):
        arms = by_arm(report[dtype])
        assert list(arms) == ["np.load", "open_store", "pyarrow", "decompress", "lz4", "no compression"]
        assert arms["open_store"]["size"] < arms["no compression"]["size"]
        assert len(report[f"{dtype}, 2 random rows"]) == 2


def test_start(photo_folder: Path, tmp_path: Path) -> None:
    report = run_report(tmp_path, "start.py", "--images", photo_folder, "--rounds", 1)
    seconds = {row["step"]: row["median"] for row in report["seconds"]}
    assert 0 < seconds["--help"] < seconds["import densefeat.extraction.job"]
    assert {"torch", "timm", "torchvision"} < {row["library"] for row in report["imports by library"]}


def test_listing(tmp_path: Path) -> None:
    report = run_report(tmp_path, "listing.py", "--sizes", "9000")
    steps = [row["step"] for row in report["9,000 files"]]
    assert steps == ["find", "os.walk and os.stat", "list", "list and stamp", "start", "resume", "close", "again", "update"]


def test_no_script_is_left_out() -> None:
    tested = set(re.findall(r"\"(\w+)\.py\"", Path(__file__).read_text()))
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == tested


def test_peers(photo_folder: Path, tmp_path: Path) -> None:
    options = (
        "--photos",
        photo_folder,
        "--count",
        20,
        "--arms",
        "timm,torchvision",
        "--rounds",
        1,
        "--work",
        tmp_path / "work",
    )
    report = run_report(tmp_path, "peers.py", *options)
    arms = by_arm(report["arms"])
    assert list(arms) == ["densefeat fp32", "timm", "torchvision"]  # these need no environment of their own
    assert all(arm["rows"] == 20 and arm["least"] > 0.999 and arm["peak"] > 100 and arm["cpu"] > 0 for arm in arms.values())
    assert report["cosine of others"] < 0.99
    damaged = by_arm(report["damaged files"])
    for kind in ("truncated", "text"):
        assert damaged["densefeat fp32"][kind] == "left out and named"
        assert damaged["timm"][kind] == "the row of another image"
        assert damaged["torchvision"][kind].startswith("ends: ")
