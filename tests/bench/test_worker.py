"""Workers as processes: how they fail, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densefeat.bench.arms import TUNED_ALLOCATOR, Arm
from densefeat.bench.builders import ArmUnderTest
from densefeat.bench.inputs import Inputs
from densefeat.bench.worker import Worker

Start = Callable[[str], Worker]
CONNECT = "import os, sys, time; from multiprocessing.connection import Connection; c = Connection(int(sys.argv[1]))\n"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a worker that runs some code instead of densefeat's own, which imports torch."""
    workers: list[Worker] = []

    def start(code: str) -> Worker:
        monkeypatch.setattr("densefeat.bench.worker._COMMAND", [sys.executable, "-c", CONNECT + code])
        subject = ArmUnderTest(Arm("hooks", "hooks", allocator="tuned"), "", Inputs("", "", 0.0), "cpu")
        workers.append(Worker(tmp_path, subject))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


def has_ended(process: int) -> bool:
    """Whether a process ended, even if its parent has not waited for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_turns_end_with_the_process(start: Start) -> None:
    reply = "c.send({'problem': None, 'seconds': 1.0})"
    worker = start(f"c.poll(None); {reply}; c.poll(None); {reply}; time.sleep(600)")
    worker.build()
    worker.take_turn()
    assert worker.turns == [{"seconds": 1.0}]
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.take_turn()
    assert worker.problem == "its process was ended by SIGKILL (out of memory?)"
    worker.take_turn()  # sends nothing
    assert len(worker.turns) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise MemoryError", "its process ended with 1: MemoryError"),
        ("raise SystemExit(3)", "its process ended with 3: no message"),
        ("c.send({'problem': 'none left'}); time.sleep(600)", "none left"),
    ],
)
def test_failures_have_a_message(code: str, message: str, start: Start) -> None:
    worker = start(code)
    worker.build()
    assert worker.problem == message


def test_a_worker_that_does_not_reply_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.bench.worker._REPLY_SECONDS", 0.1)
    worker = start("time.sleep(600)")
    worker.build()
    assert worker.problem == "no reply within 0.1 s"
    assert worker.process.returncode == -signal.SIGKILL


def test_what_a_worker_started_ends_with_it(start: Start, tmp_path: Path) -> None:
    """A compiler, say, that still runs when the worker is stopped."""
    file = tmp_path / "child"
    worker = start(
        "import subprocess, pathlib; child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    wait_until(lambda: file.exists() and file.read_text())
    child = int(file.read_text())
    assert not has_ended(child)
    worker.stop()
    wait_until(lambda: has_ended(child))


@pytest.mark.slow
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from densefeat.bench.worker import Worker; from densefeat.bench.builders import Ceiling\n"
        f"print(Worker(Path({str(tmp_path)!r}), Ceiling('cpu', ['fp32'])).process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        assert not has_ended(worker)
        parent.kill()
        parent.wait()
    wait_until(lambda: has_ended(worker))


def test_an_arm_has_its_own_allocator_settings_and_caches(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    worker = start("c.send({'problem': None, 'variables': dict(os.environ)}); time.sleep(600)")
    worker.build()
    variables = worker.summary["variables"]
    assert {key: value for key, value in variables.items() if key.startswith("MALLOC_")} == TUNED_ALLOCATOR
    assert variables["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
