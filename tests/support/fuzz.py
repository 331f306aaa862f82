"""Run damaged files through their readers, in a process of its own that may crash, hang or need too much memory."""

import faulthandler
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from densefeat.errors import DensefeatError
from support.fuzz_kinds import KINDS, Kind
from support.mutators import mutate

_SECONDS = 20  # of computing, after which a case counts as hanging
_MEMORY = 4 * 2**30  # bytes that a reader may allocate; what the libraries have mapped comes before
_TESTS = Path(__file__).parents[1]


class Case(NamedTuple):
    """A damaged file, which these three determine."""

    kind: str
    seed: int
    number: int


def find_faults(cases: list[Case]) -> Iterator[str]:
    """Run cases in a process of their own, and in a new one after a case that ended it; describe those that are faults."""
    while cases:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            child = subprocess.run(
                [sys.executable, "-m", "support.fuzz"], input=json.dumps(cases), text=True, errors="replace", capture_output=True,
                env=os.environ | {"PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1", "TMPDIR": place}, check=False,
            )  # fmt: skip
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        yield from (line for line in lines if isinstance(line, str))
        if child.returncode == 0:
            break
        done = [line for line in lines if isinstance(line, int)]
        assert done, child.stderr
        yield f"{_name(cases[done[-1]])}: the process ended with {child.returncode}: {child.stderr[-3000:]}"
        cases = cases[done[-1] + 1 :]


def _name(case: Case) -> str:
    return " ".join(map(str, case))


def _run_cases(cases: list[Case], tell: Callable[[Any], None]) -> None:
    """Tell each case's place before it is run, and a line for each fault."""
    with tempfile.TemporaryDirectory() as place:
        good, folder = Path(place, "good"), Path(place, "damaged")
        written, files, expected = "", list[Path](), dict[Path, Any]()
        for number, (name, seed, count) in enumerate(cases):
            _limit_time(0)
            kind = KINDS[name]
            if name != written:
                written, files = name, _write_files(kind, good, folder)
                expected = {}
            choose = random.Random(f"{name} {seed} {count}")
            file = choose.choice(files)
            if file not in expected:  # the good file is read, too: what is always refused shows nothing
                expected[file] = _read_copy(kind, good, folder, file)
            tell(number)
            _limit_time(_SECONDS)
            fault = ""
            try:
                found = _read_copy(kind, good, folder, file, choose)
                if kind.agree and not kind.agree(found, expected[file]):
                    fault = f"other content: {str(found)[:200]}"
            except Exception as error:
                if not isinstance(error, DensefeatError) or _comes_from(error, MemoryError):
                    fault = "".join(traceback.format_exception(error, limit=-8))
            if fault:
                tell(f"{_name(cases[number])} ({file}): {fault}")
    _limit_time(0)


def _limit_time(seconds: int) -> None:
    """End the process, with a traceback, after so many seconds of computing, or after ten times as many of waiting; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.cancel_dump_traceback_later()
    if seconds:
        faulthandler.dump_traceback_later(10 * seconds, exit=True)


def _write_files(kind: Kind, good: Path, folder: Path) -> list[Path]:
    """Write good files where damaged ones will be read, for some have the place in them; return the names of those to damage."""
    for path in (good, folder):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir()
    kind.write(folder)
    shutil.copytree(folder, good)
    return sorted(path.relative_to(good) for path in good.glob(kind.files) if path.is_file())


def _read_copy(kind: Kind, good: Path, folder: Path, file: Path, choose: random.Random | None = None) -> Any:
    """Read a copy of the good files, in which ``file`` is damaged unless ``choose`` is None."""
    shutil.rmtree(folder)
    shutil.copytree(good, folder)
    if choose:
        # a second damage might hit the name of a checksum, and make the file as one of earlier versions
        count = 1 if kind.agree else choose.choice((1, 1, 1, 2, 4))
        (folder / file).write_bytes(mutate((folder / file).read_bytes(), choose, count))
    return kind.read(folder, folder / file)


def _comes_from(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Look for an error of a kind among those that led to this one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return error is not None


def _main() -> None:
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes where it is shown only after a crash
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # whose own effect is the end
    logging.disable()
    warnings.simplefilter("ignore")  # a command shows them, and goes on
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY,) * 2)
    _run_cases([Case(*case) for case in json.load(sys.stdin)], lambda line: print(json.dumps(line), file=lines))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _kind, _seed, _first, *_count = sys.argv[1:]
        _numbers = range(int(_first), int(_first) + int(*_count or "1"))
        for _fault in find_faults([Case(_kind, int(_seed), number) for number in _numbers]):
            print(_fault)
    else:
        _main()
