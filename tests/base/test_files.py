"""Files and folders appear whole or not at all; one process writes at a time."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from densefeat.base.files import atomic_file, atomic_folder, hold_lock
from densefeat.base.full_disk import find_full_disk
from densefeat.errors import OutputError
from support.limits import limit_file_size

HOLD = """
import sys
from pathlib import Path
from densefeat.base.files import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with atomic_file(target) as beside:
        beside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as beside:
        beside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "out") as beside:
            beside.write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o644


@pytest.mark.skipif(os.name == "nt", reason="POSIX file kinds")
def test_special_files_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no regular file"), atomic_file(tmp_path / "pipe"):
        pytest.fail("the work began")


@pytest.mark.parametrize(("name", "match"), [("nowhere/out", "No such file"), ("folder", "is a folder: give a file name")])
def test_places_that_cannot_be_written(name: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=match), atomic_file(tmp_path / name):
        pytest.fail("the work began")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as beside:
        (beside / "a").write_bytes(b"x")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "out") == ["a"]
    with pytest.raises(OutputError, match="out' cannot be written"), atomic_folder(tmp_path / "out") as beside:
        (beside / "a").write_bytes(b"y")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "other"):
        raise KeyError
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out/a").read_bytes() == b"x"


def test_held_by_another_process_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match="another process is writing to it"), hold_lock(path):
        pass
    holder.kill()
    holder.communicate()
    with hold_lock(path):
        pass


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_lock(tmp_path / ".lock"):
        raise KeyError
    with hold_lock(tmp_path / ".lock"):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(bytes(100_000)),
    "text": lambda path: path.write_text("x" * 100_000),
    "safetensors": lambda path: save_file({"x": np.zeros(100_000)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"x": np.random.default_rng(0).random(100_000)}), path),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"output '.*out.bin' cannot be written: File too large"), limit_file_size(4096):  # noqa: SIM117
        with atomic_file(target) as beside:
            WRITERS[writer](beside)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("no space"), KeyError("x")])
def test_other_errors_are_not_of_the_output(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, atomic_file(tmp_path / "out.bin"):
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left on device"),
        (OSError(2, "No such file or directory"), None),
        (RuntimeError("Permission denied (os error 13)"), None),
        (RuntimeError("no space left, said the poet"), None),
    ],
)
def test_what_a_full_disk_is(error: Exception, reason: str | None) -> None:
    assert find_full_disk(error) == reason
