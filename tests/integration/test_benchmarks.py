"""Every benchmark runs, small, and prints its tables."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densefeat.training.checkpoints import _checkpoint_files
from support.helpers import BUNDLED
from support.runs import write_table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def printed(script: str, *arguments: object) -> str:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    return ended.stdout


def number_after(output: str, label: str) -> float:
    return float(output.split(label, 1)[1].split()[0].replace(",", ""))


@pytest.mark.slow
def test_decode() -> None:
    output = printed("decode.py", "--count", 2, "--rounds", 1)
    assert number_after(output, "densefeat, decoder torchvision") > 0
    assert "densefeat_densenet121, random weights" in output


def test_extract() -> None:
    output = printed("extract.py", "--count", 4, "--batch-size", 2, "--rounds", 1)
    assert number_after(output, "at tap raw:") < 1e-5
    for variant in ("network: densefeat", "files: timm loop", "job: densefeat.extract"):
        assert number_after(output, variant) > 0
    total = number_after(output, "to a folder,")
    stages = ("\nstart", "\nread and decode", "\nnetwork  ", "\nwrite", "\nrest")
    assert sum(number_after(output.split("to a folder,")[1], stage) for stage in stages) == pytest.approx(total, abs=0.04)
    cosines = [line.split()[-2:] for line in output.splitlines() if line.startswith(BUNDLED)]
    assert len(cosines) == 3
    assert all(0.99 < float(least) <= float(mean) < 1 for mean, least in cosines)


def test_pipeline(photo_folder: Path) -> None:
    output = printed(
        "pipeline.py", "--images", photo_folder, "--model", BUNDLED, "--count", 6, "--batch-size", 3, "--rounds", 1
    )
    rates = {part: number_after(output, f"\n{part} ") for part in ("decode", "network", "job", "allowed")}
    assert rates["allowed"] == pytest.approx(1 / (1 / rates["decode"] + 1 / rates["network"]), rel=0.02)
    assert number_after(output, "the job reaches ") == pytest.approx(100 * rates["job"] / rates["allowed"], abs=1)
    assert f"{BUNDLED} by openvino, fp32" in output


def test_scale(photo_folder: Path) -> None:
    options = ["--images", photo_folder, "--model", BUNDLED, "--count", 4, "--listed", 200, "--rounds", 1]
    told = json.loads(printed("scale.py", *options, "--network-rate", 1e6, "--format", "json"))
    rates, billion = told["rates"], told["projection"][-1]
    assert billion["images"] == 10**9
    files = sorted(path for path in photo_folder.rglob("*") if path.is_file())[:4]
    assert rates["file_bytes"] == sum(path.stat().st_size for path in files) / 4
    all_blocks = rates["stored"]["all blocks, float32"]
    assert billion["storage"]["all blocks, float32"]["gigabytes"] == pytest.approx(all_blocks["file_bytes"])
    assert rates["stored"]["last block, float16"]["vector_bytes"] == 342 * 2
    this, unfed, fed = billion["machines"]
    assert [machine["bottleneck"] for machine in (this, unfed)] == ["network", "decode"]
    assert this["machine_hours"] > unfed["machine_hours"] > fed["machine_hours"] > billion["listing_hours"]
    assert told["cores_needed"] > 100


@pytest.mark.slow
def test_scale_prints_its_tables(photo_folder: Path) -> None:
    output = printed("scale.py", "--images", photo_folder, "--model", BUNDLED, "--count", 2, "--listed", 100, "--rounds", 1)
    assert number_after(output, "network") > 0
    assert number_after(output, "write, all blocks, float16") > 0
    assert output.count("1,000,000,000") == 1 + 3 + 4


@pytest.mark.slow
def test_store(tmp_path: Path) -> None:
    output = printed("store.py", "--rows", 12_000, "--channels", "8,4", "--rounds", 1, "--folder", tmp_path)
    assert "10,000 rows in the middle" in output


@pytest.mark.slow
def test_search() -> None:
    output = printed("search.py", "--rows", 2000, "--pair-rows", 1000, "--rounds", 1)
    assert number_after(output, "\none query") >= 0


def test_memory(tmp_path: Path) -> None:
    options = ["--networks", "densenet40_k12,densenet121", "--batch-size", 1, "--rounds", 1, "--time"]
    output = printed("memory.py", *options, "--json", tmp_path / "memory.json")
    assert output.count("memory_efficient") == 2
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["plain", "timm", "memory_efficient"] * 2
    for plain, timm, efficient in (rows[:3], rows[3:]):
        assert plain["held_bytes"] > 2 * timm["held_bytes"] > 2.4 * efficient["held_bytes"]
        assert plain["seconds_ratio"] == 1
        assert min(row["seconds"] for row in (plain, timm, efficient)) > 0


def test_training(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--network", "densenet40_k12", "--batch-size", 2, "--steps", 2, "--rounds", 1]
    output = printed("training.py", *options, "--json", tmp_path / "training.json")
    assert "1,019,722 parameters" in output
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert [(row["code"], row["mode"]) for row in rows] == [
        ("timm", "eager"), ("ours", "eager"), ("memory_efficient", "eager"),
    ]  # fmt: skip
    assert rows[0]["ratio"] == 1
    assert min(row["images_per_second"] for row in rows) > 0


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    write_table(tmp_path / "cifar10-train.parquet", 66, size=32, seed=1)
    write_table(tmp_path / "cifar10-test.parquet", 21, size=32, seed=2)
    return tmp_path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes without the packages that a machine with nothing but this repository and torch may lack."""
    hidden = ["pydantic", "datasets", "densefeat_recipes", "matplotlib", "tensorboard"]
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


def results_options(data: Path, name: str) -> list[object]:
    folders = ["--data", data, "--runs", data / "runs", "--results", data / "results"]
    return [*folders, "--device", "cpu", "--only", name]


@pytest.mark.slow
def test_results(small_cifar: Path, bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cifar10_densenet40_k12_ten_epochs"
    options, kept = results_options(small_cifar, name), small_cifar / "results" / name
    assert "incomplete: 1.0 of 10, judged at 1.0 | 21 |" in printed("results.py", *options, "--steps", 2)
    assert {path.name for path in kept.iterdir()} == {"recipe.yaml", "metrics.jsonl", "device.json"}
    assert "\ntrain: cifar10-train.parquet\n" in (kept / "recipe.yaml").read_text()
    printed("results.py", *options)
    top1 = json.loads((kept / "results.json").read_text())["val"]["top1"]
    row = f"| {name} | densefeat_densenet40_k12 | 10 | 21 | {top1:.2f} | {100 - top1:.2f} |"
    assert row in (small_cifar / "results/README.md").read_text()
    monkeypatch.delenv("PYTHONPATH")  # a machine with matplotlib draws what that one could not
    assert printed("results.py", *options, "--minutes", 0) == printed("results.py", *options) == ""
    assert (kept / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_results_stops_its_training(small_cifar: Path) -> None:
    name = "cifar10_densenet40_k12"
    options, run = results_options(small_cifar, name), small_cifar / "runs" / name
    assert printed("results.py", *options, "--minutes", 0.005) == f"{name}\n"  # over before there is anything to keep
    command = [sys.executable, BENCHMARKS / "results.py", *map(str, options), "--minutes", "60"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)  # the training process has the other end too: it has ended
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the same command goes on from there" in said
    assert _checkpoint_files(run / "checkpoints")


@pytest.mark.slow
def test_cross_layer(small_cifar: Path) -> None:
    options = ["--data", small_cifar, "--out", small_cifar / "out", "--rows", 40, "--epochs", 2, "--width", 8, "--seeds", 2]
    output = printed("cross_layer.py", *options)
    assert "40 training images, 21 test images" in output
    told = json.loads((small_cifar / "out/cross_layer.json").read_text())
    assert told["bytes"] == 61 * 858 * 64 * 2
    assert list(told["heads"])[-1] == "cross-layer"
    for name, found in told["heads"].items():
        assert number_after(output, f"\n{name} ") == pytest.approx(found["top1"][0], abs=0.006)
        assert sum(found["seeds"]) / 2 == pytest.approx(found["top1"][0])
        assert found["rate"] == float(max(found["held_out"], key=found["held_out"].get))
    assert told["heads"]["linear, all blocks"]["parameters"] == 859 * 10
    assert sum(told["usage"]) == pytest.approx(1)
    assert {path.name for path in (small_cifar / "out").iterdir()} == {"cross_layer.json", "block_usage.png", "block_usage.svg"}


@pytest.mark.slow
def test_finetune(small_cifar: Path) -> None:
    output = printed("finetune.py", "--data", small_cifar, "--classes", "0,1,2", "--images", 4, "--test", 2)
    assert "3 classes, 4 images each" in output
    rows = {line.split("│")[1].strip(): float(line.split("│")[2]) for line in output.splitlines() if line.startswith("│")}
    assert {"finetune, head", "finetune, defaults", "finetune, shifts, no crops"} < rows.keys()
    assert all(0 <= accuracy <= 100 for accuracy in rows.values())


def test_speed(tmp_path: Path) -> None:
    options = ["--models", BUNDLED, "--batches", "1,2", "--arms", "hooks,reference", "--precision", "fp32", "--rounds", 2]
    output = printed("speed.py", *options, "--steps", 1, "--json", tmp_path / "speed.json")
    assert output.count(f"### {BUNDLED}, batch ") == 2
    assert number_after(output, "| densefeat reference, fp32 | ") > 0
    overview = output.split("images/s (ratio), by network and batch", 1)[1]
    assert "| arm | densenet_bc100_k12, 1 | densenet_bc100_k12, 2 |" in overview
    comparisons = json.loads((tmp_path / "speed.json").read_text())["comparisons"]
    assert [told["batch"] for told in comparisons] == [1, 2]
    for told in comparisons:
        hooks, reference = told["arms"]
        assert hooks["ratio"]["median"] == 1
        assert min(arm["images_per_second"] for arm in (hooks, reference)) > 0


def test_cpu_engine() -> None:
    output = printed("cpu_engine.py", "--rounds", 1, "--least", 0, "--batch", 2)
    for idea in ("norm and ReLU as one maximum", "DelugeNet's sum", "images shared out, a pass of 2"):
        for kind in ("float32", "bfloat16"):
            (row,) = (line for line in output.splitlines() if idea in line and kind in line)
            assert re.search(r"\d+\.\d\d +\d+\.\d\d +\d+\.\d\d \(\d", row)
    assert "changed weights by the count of writes" in output


@pytest.mark.slow
def test_map() -> None:
    output = printed("map.py", "--rows", 60, "--rounds", 1)
    for figure in ("written in", "page", "load", "pan"):
        assert number_after(output, figure) > 0


def test_no_script_is_left_out() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} <= tested


@pytest.mark.slow
def test_probe() -> None:
    lines = printed("probe.py", "--rows", 400, "--features", 24, "--classes", 3, "--rounds", 1).splitlines()
    own, tight, loose = (
        next(line for line in lines if line.startswith(name))
        for name in ("densefeat", "scikit-learn, tol 1e-6", "scikit-learn, tol 1e-4")
    )
    assert own.split()[-3].startswith("10^")  # on so few rows it is not chosen by accuracy
    assert abs(float(own.split()[-2]) - float(tight.split()[-2])) < 3
    assert loose.split()[-3].startswith("10^")
