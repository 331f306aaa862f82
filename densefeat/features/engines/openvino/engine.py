"""Networks compiled by OpenVINO for the CPU."""

import importlib
import importlib.util
import os
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from densefeat.errors import BackendError
from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.finite import broken_blocks, carry_nan
from densefeat.features.engines.folded import Network

_SIZES = 4  # of images that a graph is compiled for each; more share one for any size, which is slower
_PIXELS = 2 * 224**2  # of the images of one request: their maps stay in the caches
_GRAPHS = 8  # kept at a time: one takes some tens of megabytes


def openvino_obstacle() -> str | None:
    """Why this engine cannot run here, and what to do; None where it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'densefeat[openvino]'"
    return _left_behind()


def _left_behind() -> str | None:
    """Why openvino would hang in this process, or None."""
    if _process.used is not None and _process.used != os.getpid():
        return "this process was forked from one that has used openvino, whose threads stayed there: start it by spawn"
    return None


@dataclass
class Process:
    """``core``: OpenVINO's, as far as it was needed; ``used``: the process that made it, this one or one it was forked from."""

    used: int | None = None
    core: Any = None


_process = Process()


def core() -> Any:
    """The one of this process, which stays: whoever ends one in another thread than began it takes that thread's signal stack
    away, and the next signal, a Ctrl-C or a worker's end, is a segmentation fault.

    Raises BackendError in a process that was forked from one that has it.
    """
    if reason := _left_behind():
        raise BackendError(f"backend 'openvino': {reason}")
    if _process.core is None:
        _process.core, _process.used = load().Core(), os.getpid()
    return _process.core


def load() -> ModuleType:
    """openvino, without its telemetry: that writes an id into the home folder and tells its makers of each import."""
    blocked = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if it were not installed: openvino does without
    try:
        return importlib.import_module("openvino")
    finally:
        if blocked:
            sys.modules.pop("openvino_telemetry", None)


class OpenVinoEngine:
    """A few images are a request: their maps stay in the caches. Requests run side by side, on the threads that torch had.

    The first call with a batch of a new size compiles a graph, for about half a second. Calls from several threads take turns.

    Args:
        network: The network, folded.
        wanted: On the CPU. With bf16 maps are rounded to it, and given back as float32.

    Raises BackendError in a process that was forked from one that has used openvino.
    """

    def __init__(self, network: Network, wanted: EngineSpec) -> None:
        self.core = core()
        graph = importlib.import_module("densefeat.features.engines.openvino.graph")
        self.graph = graph.build(network, wanted)
        self.broken = broken_blocks(network, wanted)
        self.precision = {"fp32": "f32", "bf16": "bf16"}[wanted.precision]
        self.threads = torch.get_num_threads()
        self.sizes: set[tuple[int, int]] = set()
        self.queues: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """As :class:`densefeat.features.engines.engine.Engine`. Raises RuntimeError for images too small for the network."""
        with self.lock:
            outputs = self.run(x, mean, maps)
        blocks = len(self.graph.maps)
        means = outputs[:blocks] if mean else [None] * blocks
        results = [BlockOutput(*each) for each in zip(means, outputs[-blocks:] if maps else [None] * blocks, strict=True)]
        carry_nan(x, results, self.broken)
        return results

    def run(self, x: torch.Tensor, mean: bool, maps: bool) -> list[torch.Tensor]:
        """What is asked of all blocks: the means, then the maps."""
        together = self.images_together(x)
        groups = [_filled_up(images, together).contiguous().numpy() for images in x.detach().split(together)]
        gathered = Gathered(len(x))
        queue = self.queue(x, together, len(groups), mean, maps)
        queue.set_callback(gathered.keep)
        try:
            for i, images in enumerate(groups):
                queue.start_async({0: images}, i * together, share_inputs=True)
        finally:
            self.wait(queue)  # also when interrupted: requests read the images where they are
        return gathered.taken()

    def wait(self, queue: Any) -> None:
        try:
            queue.wait_all()
        except RuntimeError:
            self.queues.clear()  # it would raise each request's error, one a call
            raise

    def images_together(self, x: torch.Tensor) -> int:
        """In one request: a power of two, so that few graphs are compiled, that leaves none of the threads without images."""
        share = min(-(-len(x) // self.threads), _PIXELS // (x.shape[2] * x.shape[3]))
        return 1 << max(0, share.bit_length() - 1)

    def queue(self, x: torch.Tensor, together: int, requests: int, mean: bool, maps: bool) -> Any:
        """Of requests to a graph compiled for so many images of this size, side by side as many as share the threads evenly."""
        size = (x.shape[2], x.shape[3])
        own = size in self.sizes or len(self.sizes) < _SIZES
        shape = (together, x.shape[1], *(size if own else (-1, -1)))
        streams = max(n for n in range(1, self.threads + 1) if self.threads % n == 0 and n <= requests)
        key = (mean, maps, shape, streams)
        if key in self.queues:
            self.queues.move_to_end(key)
        else:
            if len(self.queues) == _GRAPHS:
                self.queues.popitem(last=False)
            compiled = self.core.compile_model(self.graph.model(mean, maps, shape), "CPU", self.settings(streams))
            self.queues[key] = load().AsyncInferQueue(compiled, streams)
        if own:
            self.sizes.add(size)
        return self.queues[key]

    def settings(self, streams: int) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": self.precision,  # by default bf16 wherever the CPU has it
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # several processes would all take the first cores
            "CPU_DENORMALS_OPTIMIZATION": False,  # as torch
        }


def _filled_up(images: torch.Tensor, count: int) -> torch.Tensor:
    """With blank images, up to so many: a graph is compiled for a number of them."""
    return torch.cat([images, images.new_zeros(count - len(images), *images.shape[1:])]) if len(images) < count else images


class Gathered:
    """Outputs of a batch, put together row by row as requests end, in threads of openvino's."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.arrays: list[np.ndarray] = []
        self.lock = threading.Lock()

    def keep(self, request: Any, start: int) -> None:
        """Copies, from row ``start`` on: later requests write into the same tensors."""
        with self.lock:
            if not self.arrays:
                self.arrays.extend(np.empty((self.rows, *one.shape[1:]), np.float32) for one in request.output_tensors)
        for array, one in zip(self.arrays, request.output_tensors, strict=True):
            array[start : start + len(one.data)] = one.data[: self.rows - start]

    def taken(self) -> list[torch.Tensor]:
        """All of them, once: a queue holds on to what it last called."""
        arrays, self.arrays = self.arrays, []
        return [torch.from_numpy(array) for array in arrays]
