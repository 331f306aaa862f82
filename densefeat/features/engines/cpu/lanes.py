"""Threads that each run a network on images of their own.

Of two ways to keep the cores of a CPU busy with a batch, to split each operation or to split the images, the second waits less:
a network's thousand operations end at a thousand barriers, and a core that something else has taken for a while holds up all.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_MOST = 8  # of more, too many would wait for Python's lock


class Lanes:
    """As many threads as torch had when they were made, divided among up to :data:`_MOST` lanes."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.most = self.count(_MOST)
        self.pools: dict[int, ThreadPoolExecutor] = {}
        self.process = os.getpid()

    def count(self, images: int) -> int:
        """Lanes that share the threads evenly, no more than there are images."""
        return max(n for n in range(1, min(self.threads, images, _MOST) + 1) if self.threads % n == 0)

    def map(self, function: Callable[[int, torch.Tensor], _T], x: torch.Tensor) -> list[_T]:
        """``function(lane, images)`` of a part of ``x`` for each lane, in order; in this thread where it is one."""
        count = self.count(len(x))
        if count == 1:
            return [function(0, x)]
        pool = self.pool(count)
        futures = [pool.submit(function, lane, images) for lane, images in enumerate(x.tensor_split(count))]
        try:
            return [future.result() for future in futures]
        finally:
            wait(futures)  # after an error or Ctrl-C the next call would share their memory with them

    def pool(self, count: int) -> ThreadPoolExecutor:
        if self.process != os.getpid():  # forked: threads stayed behind
            self.pools, self.process = {}, os.getpid()
        if count not in self.pools:
            limit = partial(_limit_threads, self.threads // count)
            self.pools[count] = ThreadPoolExecutor(count, "densefeat-lane", initializer=limit)
        return self.pools[count]


def _limit_threads(threads: int) -> None:
    """Of the calling thread's operations. ``torch.set_num_threads`` would speak for threads that others start later, too."""
    torch.get_num_threads()  # sets this thread up; what comes later counts
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(threads)
