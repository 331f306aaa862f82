"""Other people's networks as OpenVINO graphs, by tracing. Only the engine's builder imports this file: openvino is optional."""

import warnings
from collections.abc import Sequence

import openvino as ov
import torch
from torch import nn

from densefeat.base import describe_error
from densefeat.errors import BackendError
from densefeat.features.engines.openvino.engine import convert_program
from densefeat.features.forward import eval_mode, run_network
from densefeat.features.taps import Tap


class TracedGraph:
    """A network's blocks as graphs of images of one size each, traced when a size is first asked for.

    Args:
        model: A network with timm's ``forward_intermediates``, on the CPU.
        taps: Of the blocks, in the network's order.
    """

    any_size = False

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        self.net, self.blocks = _MapsNet(model, taps), len(taps)
        self.graphs: dict[tuple[int, ...], ov.Model] = {}

    def make_model(self, mean: bool, maps: bool, shape: Sequence[int]) -> ov.Model:
        """Make a model for images of ``shape``. Its outputs are all means, then all maps, each if requested.

        Raises BackendError where the network cannot be traced, or its graph has a part that OpenVINO does not know.
        """
        size = tuple(shape[1:])
        if size not in self.graphs:
            self.graphs[size] = self._trace(size)
        graph = self.graphs[size]
        outputs = [result.input_value(0) for result in graph.get_results()]
        wanted = [*(outputs[: self.blocks] if mean else ()), *(outputs[self.blocks :] if maps else ())]
        model = ov.Model(wanted, graph.get_parameters(), "densefeat").clone()
        model.reshape(ov.PartialShape(list(shape)))
        return model

    def _trace(self, size: tuple[int, ...]) -> ov.Model:
        try:
            with torch.no_grad(), eval_mode(self.net.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # both tools warn about their own code; the result is compared
                example = torch.zeros(2, *size)
                batch = {"x": {0: torch.export.Dim("batch", min=1)}}
                return convert_program(torch.export.export(self.net, (example,), dynamic_shapes=batch, strict=False))
        except Exception as error:  # both raise errors of many types
            reason = f"{type(error).__name__}: {describe_error(error)}"
            raise BackendError(f"backend 'openvino': {type(self.net.model).__name__} cannot be traced ({reason})") from error


class _MapsNet(nn.Module):
    """A network with all means, then all maps, of its taps as outputs."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.model, self.taps = model, taps

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: list[torch.Tensor] = []
        run_network(self.model, self.taps, x, lambda _, values: maps.append(values.float()))
        return (*(values.mean((2, 3)) for values in maps), *maps)
