"""Which engine computes a network's features: the one asked for, or the fastest there is here."""

import logging

from torch import nn

from densefeat.errors import BackendError
from densefeat.features.backends import openvino, triton
from densefeat.features.backends.buffer import BufferEngine
from densefeat.features.backends.engine import Engine, Wanted
from densefeat.features.backends.foldable import NotFoldable, check_foldable
from densefeat.features.backends.folded import fold
from densefeat.nets.base import StagedNet

BACKENDS = ("auto", "reference", "buffer", "openvino", "triton")
LOG = logging.getLogger("densefeat")


def choose(backend: str, model: nn.Module, wanted: Wanted) -> str:
    """The name of an engine that can run this network here. For ``"auto"`` a line is logged, except for networks of others.

    Raises BackendError.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend != "auto":
        if reason := obstacle(backend, model, wanted):
            raise BackendError(f"backend {backend!r}: {reason}")
        return backend
    if not isinstance(model, StagedNet):
        return "reference"
    candidates = ("openvino", "buffer") if wanted.device.type == "cpu" else ("triton",)
    obstacles = {name: obstacle(name, model, wanted) for name in candidates}
    chosen = next((name for name, reason in obstacles.items() if not reason), "reference")
    if chosen == "reference":
        LOG.warning("backend: reference (%s)", obstacles[candidates[-1]])
    else:
        LOG.info("backend: %s", chosen)
    return chosen


def obstacle(backend: str, model: nn.Module, wanted: Wanted) -> str:
    """Why an engine cannot run this network here; ``""`` where it can."""
    if backend == "reference":
        return ""
    if backend != "triton" and wanted.device.type != "cpu":
        return f"it runs on the CPU, not on {wanted.device}"
    try:
        check_foldable(model)
    except NotFoldable as error:
        return str(error)
    if backend == "openvino":
        return openvino.missing() or ""
    if backend == "triton":
        return triton.missing(wanted.device) or ""
    return ""


def build(name: str, model: nn.Module, wanted: Wanted) -> Engine:
    """The engine of that name, from the model's weights as they are now. Raises NotFoldable."""
    network = fold(model)
    if name == "openvino":
        return openvino.OpenVinoEngine(network, wanted)
    if name == "triton":
        return triton.TritonEngine(network, wanted)
    return BufferEngine(network, wanted)
