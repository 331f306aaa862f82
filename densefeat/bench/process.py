"""The other end of a worker: its process, asked line by line."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from densefeat.bench.arms import TUNED_ALLOCATOR

# where a first call would find what an earlier run compiled
CACHES = {"XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


REPLY_SECONDS = 15 * 60.0  # compilers take minutes to build an arm


class WorkerFailed(Exception):
    """A worker ended, took too long, or could not do what it was asked; the message says why, for a row of the table."""


class Worker:
    """A process of its own session, so that Ctrl-C at a terminal reaches only us, and ending it ends what it started.

    Args:
        folder: Of this worker alone: its log, and caches as empty as after an installation.
        allocator: ``"default"`` or ``"tuned"``: glibc reads its settings when a process starts.
    """

    def __init__(self, folder: Path, allocator: str = "default") -> None:
        folder.mkdir()
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "densefeat.bench.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment(folder, allocator), start_new_session=True,
            )  # fmt: skip

    def ask(self, request: dict[str, Any], seconds: float = REPLY_SECONDS) -> dict[str, Any]:
        """Its reply. Raises WorkerFailed where that is a problem, or where none comes in so many seconds, or as it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise WorkerFailed(f"no reply within {seconds:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerFailed(self.ending())
        told = json.loads(line)
        if "problem" in told:
            raise WorkerFailed(told["problem"])
        return told

    def ending(self) -> str:
        code = self.process.wait()
        if code < 0:
            likely = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{likely}"
        last = (self.log.read_text(errors="replace").strip() or "nothing said").splitlines()[-1]
        return f"its process ended with {code}: {last}"

    def stop(self) -> None:
        """End it and all that it started, and wait for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()


def environment(folder: Path, allocator: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    settings = TUNED_ALLOCATOR if allocator == "tuned" else {}
    return inherited | settings | {key: str(folder / name) for key, name in CACHES.items()}
