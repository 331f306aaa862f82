"""Build the engine of backend openvino: of networks of ours from their parts, of others by tracing."""

from torch import nn

from densefeat.errors import BackendError
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.finite import find_broken_blocks
from densefeat.features.engines.folded import fold_network
from densefeat.features.engines.openvino.engine import OpenVinoEngine, get_openvino_core
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.taps import list_taps
from densefeat.nets import StagedNet


def build_openvino_engine(model: nn.Module, spec: EngineSpec, quantized: QuantizedNetwork | None = None) -> OpenVinoEngine:
    """Build the engine of a network in eval mode.

    Args:
        model: A network of ours, or one with timm's ``forward_intermediates``.
        spec: For the CPU.
        quantized: The same network and spec in int8, which is computed then; None for other precisions.

    Raises:
        NotFoldable: A network of ours has parts that engines do not know.
        BackendError: This process was forked from one that has used openvino; ``quantized`` cannot be read; or the weights of
            another network are not finite.
    """
    core = get_openvino_core()
    if not isinstance(model, StagedNet):
        return _build_traced_engine(model, spec)
    from densefeat.features.engines.openvino.graph import build_graph, read_graph  # imports openvino

    network = fold_network(model)
    graph = build_graph(network, spec) if quantized is None else read_graph(core, quantized, spec)
    return OpenVinoEngine(graph, find_broken_blocks(network, spec), spec.precision)


def _build_traced_engine(model: nn.Module, spec: EngineSpec) -> OpenVinoEngine:
    from densefeat.features.engines.openvino.traced import TracedGraph  # imports openvino

    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise BackendError("backend 'openvino': the network has weights that are not finite")  # its ReLU would hide them
    taps = list_taps(model, spec.tap)
    return OpenVinoEngine(TracedGraph(model, [taps[i] for i in spec.blocks]), [False] * len(spec.blocks), spec.precision)
