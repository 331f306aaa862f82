"""The processes of the arms: each builds what it is sent, and measures it turn by turn; objects travel as pickles."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from densefeat.bench.arms import TUNED_ALLOCATOR
from densefeat.bench.builders import ArmUnderTest, Ceiling
from densefeat.errors import DensefeatError

_COMMAND = [sys.executable, "-m", "densefeat.bench.worker"]
_REPLY_SECONDS = 15 * 60.0  # compilers take minutes to build an arm
# empty caches, so that a first call finds nothing that an earlier run compiled
_CACHES = {"XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class Worker:
    """A process that measures ``subject``, its replies, and its problem if it has one; then it takes no more turns.

    Its session is its own: Ctrl-C at a terminal does not reach it, and stopping it ends what it started, too. It ends by itself
    when this process does. ``summary`` is its reply once the subject is built, ``turns`` are the others.

    Args:
        folder: For its log and its caches; for this worker alone.
    """

    def __init__(self, folder: Path, subject: ArmUnderTest | Ceiling) -> None:
        self.subject, self.log = subject, folder / "log"
        self.summary: dict[str, Any] = {}
        self.turns: list[dict[str, Any]] = []
        self.problem: str | None = None
        # glibc reads its settings when a process starts
        variables = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        if isinstance(subject, ArmUnderTest) and subject.arm.allocator == "tuned":
            variables |= TUNED_ALLOCATOR
        variables |= {key: str(folder / name) for key, name in _CACHES.items()}
        self.connection, theirs = Pipe()
        with theirs, open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip

    def build(self) -> None:
        self.summary = self._ask(self.subject, _REPLY_SECONDS)

    def take_turn(self) -> None:
        expected = self.summary.get("steps", 1) * self.summary.get("third_call_seconds", 0.0)
        if self.problem is None and (reply := self._ask(None, _REPLY_SECONDS + 10 * expected)):
            self.turns.append(reply)

    def _ask(self, request: Any, seconds: float) -> dict[str, Any]:
        reply: dict[str, Any] = {"problem": f"no reply within {seconds:g} s"}
        try:
            self.connection.send(request)
            if self.connection.poll(seconds):
                reply = self.connection.recv()
        except (EOFError, OSError):
            reply = {"problem": self._describe_end()}
        self.problem = reply.pop("problem")
        if self.problem:
            self.stop()
        return reply

    def _describe_end(self) -> str:
        code = self.process.wait()
        if code < 0:
            likely = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{likely}"
        last = (self.log.read_text(errors="replace").strip() or "no message").splitlines()[-1]
        return f"its process ended with {code}: {last}"

    def stop(self) -> None:
        """End the process and all that it started, and wait for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        self.process.wait()


def main() -> None:
    """Build the first object that comes, then run it once for each request, until the other end closes."""
    connection = Connection(int(sys.argv[1]))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # our backends do not round to TF32
    subject = None
    with suppress(EOFError):
        while True:
            request = connection.recv()
            try:
                if subject is None:
                    subject = request
                    reply = subject.build()
                else:
                    reply = subject.run()
            except Exception as error:
                reply = {"problem": _describe(error)}
            connection.send(reply)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    short = text if len(text) <= 200 else text[:200] + " …"
    return short if isinstance(error, DensefeatError) else f"{type(error).__name__}: {short}"


if __name__ == "__main__":
    main()
