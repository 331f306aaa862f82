"""Run commands of densefeat in this process, which has loaded torch already: through the same ``main`` as a real process."""

import io
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from densefeat_cli.main import main

_SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if (number := getattr(signal, name, None))]


class Finished(NamedTuple):
    """A command that has ended: what a shell would see of it."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(
    *arguments: object, cwd: str | Path | None = None, env: Mapping[str, str] | None = None, check: bool = False
) -> Finished:
    """Run ``densefeat ARGUMENTS`` and return its exit code and output, as a process with pipes would have them.

    ``cwd``: the working directory of the command. ``env``: variables added to the environment for this command alone
    (``TTY_COMPATIBLE=1`` shows progress bars). ``check``: AssertionError unless the command ends with exit code 0.
    Output of processes that the command starts is not captured. Logging, the environment, warning filters and the working
    directory are restored afterwards; AssertionError if the command leaves a signal handler behind.
    """
    words = ["densefeat", *map(str, arguments)]
    output, errors = _TextBuffer(), _TextBuffer()
    with ExitStack() as stack:
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        stack.enter_context(patch.dict(os.environ, dict(env or {})))  # also takes back what the command changes
        stack.enter_context(patch.object(sys, "argv", words))
        stack.enter_context(patch.object(sys, "stdin", io.StringIO()))
        stack.enter_context(_restored_logging())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(output))
        stack.enter_context(redirect_stderr(errors))
        handlers = [signal.getsignal(number) for number in _SIGNALS]
        exit_code = _run_main()
        assert [signal.getsignal(number) for number in _SIGNALS] == handlers, "the command left a signal handler behind"
    finished = Finished(exit_code, output.text(), errors.text())
    if check:
        assert finished.exit_code == 0, f"{shlex.join(words)}: exit code {exit_code}\n{finished.stdout}{finished.stderr}"
    return finished


class _TextBuffer(io.TextIOWrapper):
    """A text stream in memory that has ``.buffer``, like the streams of a process."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="surrogateescape", newline="", write_through=True)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]


def _run_main() -> int:
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextmanager
def _restored_logging() -> Iterator[None]:
    log = logging.getLogger("densefeat")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = propagate
