"""Choose the backend that computes a network's features: the requested one, or the fastest that can be relied on here."""

import logging

from torch import nn

from densefeat.errors import BackendError
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.engine import Engine, EngineSpec
from densefeat.features.engines.foldable import NotFoldable, check_foldable
from densefeat.features.engines.folded import fold_network
from densefeat.features.engines.openvino.build import build_openvino_engine
from densefeat.features.engines.openvino.engine import find_openvino_obstacle
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.engines.triton.engine import TritonEngine, find_triton_obstacle
from densefeat.nets import StagedNet

_BACKENDS = ("auto", "reference", "buffer", "openvino", "triton")
LOG = logging.getLogger("densefeat")


def choose_backend(backend: str, model: nn.Module, spec: EngineSpec) -> str:
    """Return the name of a backend that can run this network here.

    ``"auto"`` chooses among engines that our tests compare with the plain network on every change; it logs one line with its
    choice. Networks that are not densefeat's, and all on a GPU, start as they are: see :func:`list_candidates`.

    Raises:
        BackendError: ``backend`` is unknown or cannot run this network here.
    """
    if backend not in _BACKENDS:
        raise BackendError(f"backend {backend!r}: choose one of {', '.join(_BACKENDS)}")
    if spec.precision == "int8" and backend == "auto":
        backend = "openvino"
    if backend != "auto":
        if reason := _find_obstacle(backend, model, spec):
            raise BackendError(f"backend {backend!r}{' for int8' if spec.precision == 'int8' else ''}: {reason}")
        return backend
    if not isinstance(model, StagedNet) or spec.device.type != "cpu":
        return "reference"
    obstacles = {name: _find_obstacle(name, model, spec) for name in ("openvino", "buffer")}
    choice = next((name for name, reason in obstacles.items() if not reason), "reference")
    if choice == "reference":
        LOG.warning("backend: reference (%s)", obstacles["buffer"])
    else:
        LOG.info("backend: %s", choice)
    return choice


def needs_proof(backend: str, model: nn.Module) -> bool:
    """Say whether a backend's features have to be compared with the plain network's on the images at hand."""
    return backend == "triton" or (backend == "openvino" and not isinstance(model, StagedNet))


def list_candidates(model: nn.Module, spec: EngineSpec) -> dict[str, str | None]:
    """List the backends that may be faster than the plain network but have to prove it: each with why it cannot run here."""
    names = ("triton",) if spec.device.type != "cpu" else () if isinstance(model, StagedNet) else ("openvino",)
    return {name: _find_obstacle(name, model, spec) for name in names}


def _find_obstacle(backend: str, model: nn.Module, spec: EngineSpec) -> str | None:
    """Say why a backend cannot run this network here; None if it can."""
    if spec.precision == "int8" and backend != "openvino":
        return "it does not compute in int8: choose openvino"
    if backend == "reference":
        return None
    if backend != "triton" and spec.device.type != "cpu":
        return f"it runs on the CPU, not on {spec.device}: choose device cpu"
    if backend == "openvino" and not isinstance(model, StagedNet) and spec.precision != "int8":
        return find_openvino_obstacle() if hasattr(model, "forward_intermediates") else "timm cannot list its blocks' maps"
    try:
        check_foldable(model)
    except NotFoldable as error:
        return str(error)
    if backend == "openvino":
        return find_openvino_obstacle()
    return find_triton_obstacle(spec.device) if backend == "triton" else None


def build_engine(backend: str, model: nn.Module, spec: EngineSpec, quantized: QuantizedNetwork | None = None) -> Engine:
    """Build the engine of a backend from the model's current weights. ``quantized``: the same network, for precision int8.

    Raises:
        NotFoldable: The network has parts that engines do not know.
        BackendError: The backend cannot run in this process.
    """
    if backend == "openvino":
        return build_openvino_engine(model, spec, quantized)
    network = fold_network(model)
    if backend == "triton":
        return TritonEngine(network, spec)
    return BufferEngine(network, spec)
