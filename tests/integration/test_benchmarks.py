"""Every benchmark runs, small, and prints its tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import BUNDLED

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


def test_no_script_is_left_out() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} <= tested
