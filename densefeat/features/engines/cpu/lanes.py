"""Threads that each run a network on a share of the images.

A batch can keep the cores of a CPU busy in two ways: split each operation, or split the images. Splitting the images waits
less: a network's thousand operations would end at a thousand barriers, where one core that is busy elsewhere holds up all.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_MAX_LANES = 8  # more lanes would wait too often for Python's global lock


class Lanes:
    """A set of up to :data:`_MAX_LANES` lanes that share the threads that torch has when this object is made."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.limit = self.count(_MAX_LANES)
        self.pools: dict[int, ThreadPoolExecutor] = {}
        self.process = os.getpid()

    def count(self, images: int) -> int:
        """Count the lanes for so many images: they share the threads evenly, and each has an image."""
        return max(n for n in range(1, min(self.threads, images, _MAX_LANES) + 1) if self.threads % n == 0)

    def map(self, function: Callable[[int, torch.Tensor], _T], x: torch.Tensor) -> list[_T]:
        """Call ``function(lane, images)`` with each lane's share of ``x``; return the results in the order of the images.

        A single lane runs in the calling thread.
        """
        count = self.count(len(x))
        if count == 1:
            return [function(0, x)]
        pool = self.get_pool(count)
        futures = [pool.submit(function, lane, images) for lane, images in enumerate(x.tensor_split(count))]
        try:
            return [future.result() for future in futures]
        finally:
            wait(futures)  # after an error or Ctrl-C too: the next call uses the same memory

    def get_pool(self, count: int) -> ThreadPoolExecutor:
        if self.process != os.getpid():  # a fork has no copies of the threads
            self.pools, self.process = {}, os.getpid()
        if count not in self.pools:
            limit = partial(_limit_threads, self.threads // count)
            self.pools[count] = ThreadPoolExecutor(count, "densefeat-lane", initializer=limit)
        return self.pools[count]


def _limit_threads(threads: int) -> None:
    """Limit the threads of the calling thread's operations.

    ``torch.set_num_threads`` would also change threads that others start later.
    """
    torch.get_num_threads()  # torch initialises a thread at its first call, which would overwrite the limit
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(threads)
