"""What a process may take: of its machine, of its control groups, of its own limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from densefeat.base import measure_memory_limit, memory

GB = 2**30
MEASURE = "from densefeat.base import measure_memory_limit; print(measure_memory_limit())"


def test_it_is_at_most_the_machine() -> None:
    assert 0 < measure_memory_limit() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/a/b\n", {"a/memory.max": f"{3 * GB}\n", "a/b/memory.max": "max\n"}, [3 * GB]),
        ("0::/a/b\n", {"a/memory.max": f"{3 * GB}\n", "a/b/memory.max": f"{2 * GB}\n"}, [2 * GB, 3 * GB]),
        ("0::/\n", {"memory.max": f"{GB}\n"}, [GB]),  # as a container sees its own group
        ("0::/elsewhere\n", {}, []),
        ("5:cpu,memory:/job\n3:pids:/job\n", {"memory/job/memory.limit_in_bytes": f"{GB}\n"}, [GB]),
        ("5:cpu:/job\n", {"memory/job/memory.limit_in_bytes": f"{GB}\n"}, []),
    ],
)
def test_control_groups(membership: str, files: dict[str, str], limits: list[int], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    assert list(memory._read_cgroups(tmp_path, tmp_path / "cgroup")) == limits


def test_without_control_groups(tmp_path: Path) -> None:
    assert list(memory._read_cgroups(tmp_path, tmp_path / "cgroup")) == []


@pytest.mark.parametrize("option", ["-v", "-d"])
def test_own_limits(option: str) -> None:
    """Half a gigabyte, of which the interpreter has taken some already."""
    shell = f"ulimit {option} 524288 && exec {sys.executable} -c '{MEASURE}'"
    limit = int(subprocess.run(["bash", "-c", shell], check=True, capture_output=True, text=True).stdout)
    assert 2**28 < limit < 2**29
