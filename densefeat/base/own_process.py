"""Settings for processes of our own: how memory is kept and how threads wait while a network runs on a CPU."""

import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT = 2**30  # bytes: freed memory that stays with the process, and the size from which a block is returned at once
_KEPT_EARLIER = 2**25  # the most that older versions of glibc take as the latter
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS = 1000  # some 20 µs, about as long as waking a thread takes; libgomp's default is 300,000


def settle_threads() -> None:
    """Let OpenMP's threads sleep soon when they wait for each other. Call it before torch is loaded.

    On cores that other programs use too, a thread then does not spin for milliseconds until one that is not running gets on.
    This is for programs, not for libraries. What the user set by ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` stays; without GNU's
    OpenMP nothing changes.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)


def keep_freed_memory() -> None:
    """Let this process keep freed memory, so that a layer's maps lie in memory that it has, and cost no new pages.

    This is for programs that run the plain network all the time, not for libraries, and not where memory is scarce: the peak
    is higher. What the user set by ``MALLOC_…`` or ``GLIBC_TUNABLES`` stays; without glibc nothing changes.
    """
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
