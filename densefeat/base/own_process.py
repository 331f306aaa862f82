"""Settings for processes of our own: how memory is kept and how threads wait while a network runs on a CPU."""

import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT = 2**30  # bytes: freed memory that stays with the process, and the size from which a block is returned at once
_KEPT_EARLIER = 2**25  # the most that older versions of glibc take as the latter
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS = 1000  # some 20 µs, about as long as waking a thread takes; libgomp's default is 300,000


def settle_process() -> None:
    """Let this process keep freed memory, and let OpenMP's threads sleep soon when they wait for each other.

    A layer's maps then lie in memory that the process has, and cost no new pages; and on cores that other programs use too, a
    thread does not spin for milliseconds until one that is not running gets on. This is for programs, not for libraries:
    densefeat's commands call it when they start. Threads follow it if torch is loaded later; allocations always.

    Variables that the user set stay: ``MALLOC_…`` and ``GLIBC_TUNABLES`` for memory, ``OMP_WAIT_POLICY`` and
    ``GOMP_SPINCOUNT`` for threads. Without glibc or GNU's OpenMP nothing changes.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)
    if _has_glibc() and not any(name.startswith("MALLOC_") for name in os.environ) and "GLIBC_TUNABLES" not in os.environ:
        import ctypes  # 4 ms that a library's user need not take

        mallopt = ctypes.CDLL(None).mallopt
        # setting either ends glibc's own adjustment of both: the second alone would leave all blocks from 128 KB on unkept
        if mallopt(_MMAP_THRESHOLD, _KEPT) or mallopt(_MMAP_THRESHOLD, _KEPT_EARLIER):
            mallopt(_TRIM_THRESHOLD, _KEPT)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # Windows; another libc
        return False
