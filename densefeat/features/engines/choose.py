"""Which engine computes a network's features: the one asked for, or the fastest there is here."""

import logging

from torch import nn

from densefeat.errors import BackendError
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.engine import Engine, EngineSpec
from densefeat.features.engines.foldable import NotFoldable, check_foldable
from densefeat.features.engines.folded import fold
from densefeat.features.engines.openvino.engine import OpenVinoEngine, openvino_obstacle
from densefeat.features.engines.triton.engine import TritonEngine, triton_obstacle
from densefeat.nets import StagedNet

_BACKENDS = ("auto", "reference", "buffer", "openvino", "triton")
LOG = logging.getLogger("densefeat")


def choose(backend: str, model: nn.Module, wanted: EngineSpec) -> str:
    """The name of an engine that can run this network here. For ``"auto"`` a line is logged, except for networks of others.

    Raises BackendError.
    """
    if backend not in _BACKENDS:
        raise BackendError(f"backend {backend!r}: choose one of {', '.join(_BACKENDS)}")
    if backend != "auto":
        if reason := _obstacle(backend, model, wanted):
            raise BackendError(f"backend {backend!r}: {reason}")
        return backend
    if not isinstance(model, StagedNet):
        return "reference"
    candidates = ("openvino", "buffer") if wanted.device.type == "cpu" else ("triton",)
    obstacles = {name: _obstacle(name, model, wanted) for name in candidates}
    chosen = next((name for name, reason in obstacles.items() if not reason), "reference")
    if chosen == "reference":
        LOG.warning("backend: reference (%s)", obstacles[candidates[-1]])
    else:
        LOG.info("backend: %s", chosen)
    return chosen


def _obstacle(backend: str, model: nn.Module, wanted: EngineSpec) -> str:
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
        return openvino_obstacle() or ""
    if backend == "triton":
        return triton_obstacle(wanted.device) or ""
    return ""


def build(name: str, model: nn.Module, wanted: EngineSpec) -> Engine:
    """The engine of that name, from the model's weights as they are now. Raises NotFoldable."""
    network = fold(model)
    if name == "openvino":
        return OpenVinoEngine(network, wanted)
    if name == "triton":
        return TritonEngine(network, wanted)
    return BufferEngine(network, wanted)
