"""One writer at a time, whatever becomes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from densefeat.base.locks import hold_lock
from densefeat.errors import OutputError

HOLD = """
import sys
from pathlib import Path
from densefeat.base.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


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
