"""What cutting a network saves: arithmetic, and time in the graph's own runtime."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from densefeat.export.check import Runner

_ROUNDS = range(5, 100)
_SECONDS = 2.0  # after which no round begins, once there were enough


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-adds of convolutions and linear layers for one image: of the whole ``network``, and in the ``graph``."""

    network: int
    graph: int


@dataclass(frozen=True)
class Speed:
    """Seconds a pass of ``images`` images: of the ``network`` with the features of all blocks, and of the ``graph``.

    Both are medians of ``rounds``, in which both were run in turn.
    """

    network: float
    graph: float
    images: int
    rounds: int


def compare_speed(network: Runner, graph: Runner, images: torch.Tensor) -> Speed:
    """Run both in turn; the first round only warms up."""
    _time(network, images), _time(graph, images)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _ROUNDS.start or (len(times) < _ROUNDS.stop and time.perf_counter() < end):
        times.append((_time(network, images), _time(graph, images)))
    of_network, of_graph = (median(seconds) for seconds in zip(*times, strict=True))
    return Speed(of_network, of_graph, len(images), len(times))


def _time(run: Runner, images: torch.Tensor) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
