"""Ended at any moment and started again, a store is the one that an undisturbed run makes. Real processes, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

import densefeat

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
TESTS = Path(__file__).parents[1]


def run_script(script: str, *arguments: object) -> tuple[str, str]:
    """Run a script with the helpers of support/forked.py in another interpreter; return its last line and all of its errors."""
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from support.forked import *\n" + script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.splitlines()[-1], ended.stderr


def table_of(store: Path) -> pa.Table:
    return ds.dataset(store / "data", format="parquet").to_table()


def assert_same(store: Path, reference: Path) -> None:
    """Compare rows bit for bit, failures, and the files of two stores."""
    assert table_of(store).equals(table_of(reference))
    assert pq.read_table(store / "failures.parquet").equals(pq.read_table(reference / "failures.parquet"))
    assert sorted(os.listdir(store)) == [".lock", "data", "failures.parquet", "manifest.json", "stamps.parquet"]
    assert sorted(os.listdir(store / "data")) == sorted(os.listdir(reference / "data"))
    assert json.loads((store / "manifest.json").read_text())["complete"]


@pytest.fixture
def many(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """A folder of 150 small photographs, five of them broken."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(150):
        piece = photographs[i % 12]
        piece.resize((60 + i % 31, 50 + i % 23)).save(folder / f"{i:03}.jpg")
    for i in (3, 64, 65, 66, 140):
        (folder / f"{i:03}.jpg").write_bytes((folder / f"{i:03}.jpg").read_bytes()[:300])
    return folder


INTERRUPTED = """
*arguments, number, times = sys.argv[1:]
reference = arguments.index("--out") + 1
whole = [*arguments]
whole[reference] += "-whole"
began = time.monotonic()
assert exit_code(start(whole)) == 0
print(*interrupt_at_random(arguments, int(times), signal.Signals(int(number)), time.monotonic() - began, seed=4))
"""


@pytest.mark.parametrize(
    ("number", "times", "allowed"),
    [
        pytest.param(signal.SIGKILL, 20, {0, -9}, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 6, {0, 130}, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, {0, 143, -15}),
    ],
)
def test_interruptions_change_nothing(number: int, times: int, allowed: set[int], many: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    printed, errors = run_script(
        INTERRUPTED, "--images", many, "--out", out, "--batch-size", 7, "--part-rows", 20, int(number), times
    )
    codes = [int(code) for code in printed.split()]
    assert codes[-1] == 0
    assert set(codes) <= allowed
    assert len(set(codes)) > 1, "every run was over before its signal came"
    if number != signal.SIGKILL:
        assert re.search(r"densefeat: interrupted after \d+ of 150 images; the same command .* resumes there", errors)
    assert_same(out, tmp_path / "store-whole")
    assert len(densefeat.open_store(out)) == 145


CRASHES = """
root, undo, *arguments = sys.argv[1:]
arguments += ["--out", root]
events = count_events(arguments[:-1] + [root + "-whole"], root + "-whole")
from densefeat import open_store
from densefeat.errors import UsageError
import shutil
for event in range(1, events + 1):
    shutil.rmtree(root, ignore_errors=True)
    assert crash(arguments, root, event, undo == "undo") == 137, event
    try:
        store = open_store(root)
        for name in store.schema.names:
            store.column(name)
        done = len(store)
    except UsageError:
        done = 0
    assert exit_code(start(arguments)) == 0, event
    same = open_store(root + "-whole")
    again = open_store(root)
    assert list(again.keys) == list(same.keys), event
    assert (again["block3"] == same["block3"]).all() and again.failures == same.failures, event
    for folder in ("", "/data"):
        assert sorted(os.listdir(root + folder)) == sorted(os.listdir(root + "-whole" + folder)), event
    assert again.complete
print(events)
"""


@pytest.mark.slow
@pytest.mark.parametrize("renames", ["keep", "undo"])
def test_power_cut_at_every_write_sync_and_rename(renames: str, photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "china/03.jpg").write_bytes(b"")
    events, _ = run_script(CRASHES, tmp_path / "store", renames, "--images", photo_folder, "--part-rows", 8, "--batch-size", 4)
    assert int(events) > 25


UPDATE_CRASHES = """
images, root, undo, *arguments = sys.argv[1:]
from pathlib import Path
from densefeat import open_store
import shutil
arguments += ["--images", images, "--out", root]
before, whole = root + "-before", root + "-whole"
assert exit_code(start(arguments)) == 0
os.rename(root, before)
files = sorted(Path(images).iterdir())
for old, new in ((1, 5), (4, 0)):
    shutil.copyfile(files[new], files[old])
shutil.copyfile(files[2], files[2].with_stem("added"))
arguments.append("--update")
shutil.copytree(before, whole)
events = count_events([*arguments[:-2], whole, "--update"], whole)
same = open_store(whole)
assert (same["block3"][1] == same["block3"][5]).all()
for event in range(1, events + 1):
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(before, root)
    assert crash(arguments, root, event, undo == "undo") == 137, event
    keys = [key for part in Path(root, "data").glob("*.parquet") for key in pq.read_table(part)["path"].to_pylist()]
    assert len(keys) == len(set(keys)) and set(keys) >= set(same.keys[:6]), event
    assert exit_code(start(arguments)) == 0, event
    again = open_store(root)
    assert again.complete and list(again.keys) == list(same.keys), event
    assert (again["block3"] == same["block3"]).all() and again.failures == same.failures, event
    for folder in ("", "/data"):
        assert sorted(os.listdir(root + folder)) == sorted(os.listdir(whole + folder)), event
print(events)
"""


@pytest.mark.slow
@pytest.mark.parametrize("renames", ["keep", "undo"])
def test_power_cut_while_rows_are_replaced(renames: str, photographs: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(6):
        photographs[i].resize((50 + i, 40)).save(tmp_path / f"in/{i}.jpg")
    events, _ = run_script(UPDATE_CRASHES, tmp_path / "in", tmp_path / "store", renames, "--part-rows", 3, "--batch-size", 1)
    assert int(events) > 30


@pytest.mark.slow
def test_disk_full_keeps_what_is_written(many: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the system refuses the write in the same way."""
    script = """
import resource
arguments = sys.argv[1:]
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
print(exit_code(start([*arguments, "--part-rows", "130"], limit)), exit_code(start([*arguments, "--part-rows", "130"])))
"""
    codes, errors = run_script(script, "--images", many, "--out", tmp_path / "store")
    assert codes == "1 0"
    assert re.search("part-00000.parquet' cannot be written: .*File too large", errors)
    assert len(densefeat.open_store(tmp_path / "store")) == 145
