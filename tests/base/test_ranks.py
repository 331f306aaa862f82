"""Several processes under torchrun: each extracts its share of the parts; one that is killed loses only its current part."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import densefeat
from densefeat import UsageError
from densefeat.base.ranks import Ranks
from support.helpers import BUNDLED

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
EXTRACT = ["-m", "densefeat", "extract", "--model", BUNDLED, "--batch-size", "4"]


@pytest.fixture
def folder(photo_folder: Path) -> Path:
    for i in range(7):
        shutil.copytree(photo_folder / "china", photo_folder / f"copy{i}")
    (photo_folder / "china/02.jpg").write_bytes(b"broken")
    return photo_folder


def test_torchrun_writes_the_same_store(folder: Path, tmp_path: Path) -> None:
    command = [*TORCHRUN, "--standalone", *EXTRACT, "--images", folder, "--out", tmp_path / "shared", "--part-rows", "8"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wrote") == 1
    assert "53 rows" in ended.stdout
    assert "1 failures" in ended.stdout
    densefeat.extract(folder, tmp_path / "alone", BUNDLED, batch_size=4, part_rows=8)
    shared, alone = densefeat.open_store(tmp_path / "shared"), densefeat.open_store(tmp_path / "alone")
    assert shared.complete
    assert list(shared.keys) == list(alone.keys)
    assert shared.failures == alone.failures
    assert np.abs(shared["block3"] - alone["block3"]).max() < 1e-5
    assert not (tmp_path / "shared/work").exists()


@pytest.mark.slow
def test_torchrun_on_a_finished_store(folder: Path, tmp_path: Path) -> None:
    densefeat.extract(folder, tmp_path / "shared", BUNDLED, batch_size=4, part_rows=8)
    command = [*TORCHRUN, "--standalone", *EXTRACT, "--images", folder, "--out", tmp_path / "shared", "--part-rows", "8"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout


def process_of_rank(rank: int, out: Path) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if str(out).encode() in command and f"\0RANK={rank}\0".encode() in environment:
                return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_its_parts_done_again(folder: Path, tmp_path: Path) -> None:
    for i in range(7, 60):
        shutil.copytree(folder / "copy0", folder / f"copy{i}")
    command = [*TORCHRUN, "--standalone", "--max-restarts=3", *EXTRACT, "--images", folder, "--out", tmp_path / "store"]
    process = subprocess.Popen(
        [*command, "--part-rows", "16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    records = tmp_path / "store/work/records"
    while len(list(records.glob("part-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process_of_rank(1, tmp_path / "store"), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "exitcode: -9" in errors, errors
    assert "exitcode: 1)" not in errors, errors
    store = densefeat.open_store(tmp_path / "store")
    assert store.complete
    assert len(store) == 371
    assert len(set(store.keys)) == 371


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.from_environment() == Ranks(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks.from_environment()
    assert ranks == Ranks(5, 8, 1, 4)
    assert not ranks.first


def test_a_single_file_cannot_be_shared(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="is a single file: --update, --part-rows, several processes"):
        densefeat.extract(folder, tmp_path / "e.parquet", BUNDLED)
