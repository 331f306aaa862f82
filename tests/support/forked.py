"""Real processes that start at once: one interpreter imports densefeat, and forks for every run. Read by tests as a script."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pyarrow.parquet as pq

import densefeat
import densefeat_cli.main
from support.helpers import BUNDLED


def start(arguments: list[str], before: Callable[[], None] | None = None) -> int:
    """`densefeat extract` in a process of its own, with the bundled network; returns its id."""
    assert densefeat.extract  # loaded once, before the first fork

    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["densefeat", "extract", "--model", BUNDLED, *arguments]
    if before:
        before()
    try:
        densefeat_cli.main.main()
    except SystemExit as ended:
        os._exit(ended.code or 0)
    os._exit(99)


def exit_code(pid: int) -> int:
    """Return the exit code of a process that ended; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def interrupt_at_random(arguments: list[str], times: int, number: signal.Signals, longest: float, seed: int) -> list[int]:
    """The same command again and again, ended by a signal; then left alone. Returns all exit codes."""
    choose, codes = random.Random(seed), []
    for _ in range(times):
        pid = start(arguments)
        time.sleep(choose.uniform(0, longest))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        codes.append(exit_code(pid))
    codes.append(exit_code(start(arguments)))
    return codes


def list_files(root: str) -> list[str]:
    return [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]


class Disk:
    """Counts what reaches the disk, and ends the process at the n-th of these as a power cut would.

    Files that were there before are safe. Others that were not synced lose their second half; with ``undo``, renames are undone whose folder was
    not synced.
    """

    def __init__(self, root: str, crash_at: int | None, undo: bool) -> None:
        self.root, self.crash_at, self.undo = root, crash_at, undo
        self.events = 0
        self.synced = {status.st_ino: status.st_size for status in map(os.stat, list_files(root))}  # by inode
        self.renames: list[tuple[str, str, str | None]] = []
        self.fsync, self.replace = os.fsync, os.replace
        os.fsync, os.replace = self.watched_fsync, self.watched_replace
        for name in ("write_table", "close"):
            setattr(pq.ParquetWriter, name, self.counted(getattr(pq.ParquetWriter, name)))

    def counted(self, function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            self.event()
            return function(*arguments, **options)

        return call

    def watched_fsync(self, descriptor: int) -> None:
        self.event()
        self.fsync(descriptor)
        status = os.fstat(descriptor)
        self.synced[status.st_ino] = status.st_size
        folder = os.readlink(f"/proc/self/fd/{descriptor}")
        self.renames = [entry for entry in self.renames if os.path.dirname(entry[1]) != folder]

    def watched_replace(self, source: str, target: str) -> None:
        self.event()
        source, target = os.fspath(source), os.fspath(target)
        kept = None
        if os.path.exists(target):
            kept = f"{self.root}.kept-{self.events}"
            with suppress(FileNotFoundError):  # left by an earlier cut
                os.unlink(kept)
            os.link(target, kept)
        self.replace(source, target)
        self.renames.append((source, target, kept))

    def event(self) -> None:
        self.events += 1
        if self.events == self.crash_at:
            self.power_cut()

    def power_cut(self) -> None:
        if self.undo:
            for source, target, kept in reversed(self.renames):
                self.replace(target, source)
                if kept:
                    self.replace(kept, target)
        for path in list_files(self.root):
            status = os.stat(path)
            if self.synced.get(status.st_ino) != status.st_size:
                os.truncate(path, status.st_size // 2)
        os._exit(137)


def count_events(arguments: list[str], root: str) -> int:
    """Count the writes, syncs and renames of an undisturbed run."""
    reading, writing = os.pipe()

    def watch() -> None:
        disk = Disk(root, None, False)
        leave = os._exit

        def tell(code: int) -> None:
            os.write(writing, str(disk.events).encode())
            leave(code)

        os._exit = tell

    pid = start(arguments, watch)
    events = int(os.read(reading, 100))
    assert exit_code(pid) == 0
    return events


def crash(arguments: list[str], root: str, event: int, undo: bool) -> int:
    return exit_code(start(arguments, lambda: Disk(root, event, undo) and None))
