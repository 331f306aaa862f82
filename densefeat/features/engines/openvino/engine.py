"""The engine of backend openvino: networks compiled by OpenVINO for the CPU.

openvino is imported when it is first needed, since it is optional and slow to import.
"""

import importlib.util
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from densefeat.errors import BackendError
from densefeat.features.engines.engine import BlockOutput
from densefeat.features.engines.finite import propagate_nan

_MAX_SIZES = 4  # image sizes that get graphs of their own; further sizes share graphs for any size, which are slower
_REQUEST_PIXELS = 2 * 224**2  # of one request's images, so that their maps stay in the caches
_MAX_GRAPHS = 8  # compiled graphs kept at a time; one takes some tens of megabytes


def find_openvino_obstacle() -> str | None:
    """Say why this engine cannot run here, and what to do; None if it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'densefeat[openvino]'"
    return _find_fork_obstacle()


def _find_fork_obstacle() -> str | None:
    """Say why openvino would hang in this process; None if it would not."""
    if _owner.process is not None and _owner.process != os.getpid():
        return "this process was forked from one that has used openvino, whose threads a fork does not copy: start it by spawn"
    return None


@dataclass
class CoreOwner:
    """A place for OpenVINO's core and the process that made it: this one, or one that this one was forked from."""

    process: int | None = None
    core: Any = None


_owner = CoreOwner()


def get_openvino_core() -> Any:
    """Return this process's only OpenVINO core, which is never destroyed.

    Destroying a core in another thread than the one that made it frees that thread's signal stack. The next signal, such as
    Ctrl-C or the end of a child process, would then be a segmentation fault.

    Raises:
        BackendError: This process was forked from one that has a core.
    """
    if reason := _find_fork_obstacle():
        raise BackendError(f"backend 'openvino': {reason}")
    if _owner.core is None:
        import openvino

        _owner.core, _owner.process = openvino.Core(), os.getpid()
    return _owner.core


def convert_program(program: Any) -> Any:
    """Convert a program of torch.export to a model of OpenVINO's. Raises whatever the converter raises."""
    import openvino

    with _keep_root_logger():
        return openvino.convert_model(program)


@contextmanager
def _keep_root_logger() -> Iterator[None]:
    """Undo what OpenVINO's converter does to the log of the whole program: after a failure it leaves warnings hidden."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


class Graph(Protocol):
    """A network of which models for images of one size are made."""

    @property
    def any_size(self) -> bool:
        """Whether a model can also be made for images of any size."""

    @property
    def blocks(self) -> int:
        """The number of blocks that have outputs."""

    def make_model(self, mean: bool, maps: bool, shape: Sequence[int]) -> Any:
        """Make a model for images of ``shape``, where -1 means any size.

        Its outputs are all means, then all maps, each if requested.
        """


class OpenVinoEngine:
    """An :class:`Engine` for the CPU that runs requests of a few images side by side, on the threads that torch has.

    The first call with a batch of a new size compiles a graph, in about half a second. Calls from several threads take turns.

    Args:
        graph: The network.
        broken: For each block whether a weight that its features depend on is not finite.
        precision: As of an EngineSpec. With bf16 the maps are rounded to it, and returned as float32.

    Raises:
        BackendError: This process was forked from one that has used openvino.
    """

    def __init__(self, graph: Graph, broken: Sequence[bool], precision: str) -> None:
        self.core = get_openvino_core()
        self.graph, self.broken = graph, broken
        self.precision = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision]  # int8: of all that is not quantised
        self.threads = torch.get_num_threads()
        self.sizes: set[tuple[int, int]] = set()
        self.queues: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.turn = threading.Lock()

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Compute the features as :class:`Engine` describes. Raises RuntimeError for images too small for the network."""
        with self.turn:
            outputs = self.run(x, mean, maps)
        blocks = self.graph.blocks
        block_means = outputs[:blocks] if mean else [None] * blocks
        block_maps = outputs[-blocks:] if maps else [None] * blocks
        results = [BlockOutput(*pair) for pair in zip(block_means, block_maps, strict=True)]
        propagate_nan(x, results, self.broken)
        return results

    def run(self, x: torch.Tensor, mean: bool, maps: bool) -> list[torch.Tensor]:
        """Return the means of all blocks, then the maps of all blocks, each if requested."""
        size = self.request_size(x)
        groups = [_pad_batch(images, size).contiguous().numpy() for images in x.detach().split(size)]
        collector = RowCollector(len(x))
        queue = self.get_queue(x, size, len(groups), mean, maps)
        queue.set_callback(collector.add)
        try:
            for i, images in enumerate(groups):
                queue.start_async({0: images}, i * size, share_inputs=True)
        finally:
            self.wait(queue)  # after an interrupt too, since requests read the images where they are
        return collector.take()

    def wait(self, queue: Any) -> None:
        try:
            queue.wait_all()
        except RuntimeError:
            self.queues.clear()  # the queue would raise the other requests' errors in later calls
            raise

    def request_size(self, x: torch.Tensor) -> int:
        """Count the images of one request: a power of two, so that few graphs are compiled, that leaves no thread idle."""
        share = min(-(-len(x) // self.threads), _REQUEST_PIXELS // (x.shape[2] * x.shape[3]))
        return 1 << max(0, share.bit_length() - 1)

    def get_queue(self, x: torch.Tensor, request_size: int, requests: int, mean: bool, maps: bool) -> Any:
        """Return a queue of requests to a graph for images of this size.

        It runs as many requests side by side as share the threads evenly.
        """
        size = (x.shape[2], x.shape[3])
        exact = not self.graph.any_size or size in self.sizes or len(self.sizes) < _MAX_SIZES
        shape = (request_size, x.shape[1], *(size if exact else (-1, -1)))
        streams = max(n for n in range(1, self.threads + 1) if self.threads % n == 0 and n <= requests)
        key = (mean, maps, shape, streams)
        if key in self.queues:
            self.queues.move_to_end(key)
        else:
            if len(self.queues) == _MAX_GRAPHS:
                self.queues.popitem(last=False)
            model = self.graph.make_model(mean, maps, shape)
            compiled = self.core.compile_model(model, "CPU", self.compile_options(streams))
            import openvino

            self.queues[key] = openvino.AsyncInferQueue(compiled, streams)
        if exact:
            self.sizes.add(size)
        return self.queues[key]

    def compile_options(self, streams: int) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": self.precision,  # the default is bf16 wherever the CPU has it
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # several processes would all use the first cores
            "CPU_DENORMALS_OPTIMIZATION": False,  # torch keeps denormal numbers too
        }


def _pad_batch(images: torch.Tensor, count: int) -> torch.Tensor:
    """Append blank images up to ``count``, the number that the graph is compiled for."""
    return torch.cat([images, images.new_zeros(count - len(images), *images.shape[1:])]) if len(images) < count else images


class RowCollector:
    """The outputs of a batch, collected row by row as requests end in openvino's threads."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.arrays: list[np.ndarray] = []
        self.lock = threading.Lock()

    def add(self, request: Any, start: int) -> None:
        """Copy a request's outputs to the rows from ``start`` on: later requests overwrite its tensors."""
        with self.lock:
            if not self.arrays:
                self.arrays.extend(np.empty((self.rows, *tensor.shape[1:]), np.float32) for tensor in request.output_tensors)
        for array, tensor in zip(self.arrays, request.output_tensors, strict=True):
            array[start : start + len(tensor.data)] = tensor.data[: self.rows - start]

    def take(self) -> list[torch.Tensor]:
        """Return the outputs and forget them, since the queue keeps a reference to its last callback."""
        arrays, self.arrays = self.arrays, []
        return [torch.from_numpy(array) for array in arrays]
