"""How much memory this process may take: of the machine's, of its container's, and of its own limits."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 8 * 2**30  # assumed where the system says nothing
_CGROUPS = Path("/sys/fs/cgroup")


def measure_memory_limit() -> int:
    """Return the bytes of memory that this process may take at most, what other processes take not deducted.

    It is the least of the machine's memory, the limits of the control groups that the process is in (as containers and
    batch systems set them), and what its own limits (``ulimit -v`` and ``-d``) leave of their sizes.
    """
    return max(0, min([_read_machine(), *_read_cgroups(_CGROUPS, Path("/proc/self/cgroup")), *_read_own_limits()]))


def _read_machine() -> int:
    with suppress(AttributeError, ValueError, OSError):  # not on every system
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNKNOWN


def _read_cgroups(root: Path, membership: Path) -> Iterator[int]:
    """Read the limits of the control groups of version 1 and 2 that ``membership`` lists, and of those around them."""
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                top, file = root, "memory.max"
            elif "memory" in controllers.split(","):
                top, file = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = top / name.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file in the root group; "max" is no number
                    yield int((folder / file).read_text())
                if folder == top:
                    break


def _read_own_limits() -> Iterator[int]:
    """Read what the process's limits leave: of its address space, and of the part of it that can be written to."""
    if sys.platform == "win32":
        return
    import resource

    sizes = [0] * 7
    with suppress(OSError):  # only Linux has the file
        sizes = [int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in Path("/proc/self/statm").read_text().split()]
    for kind, taken in ((resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - taken
