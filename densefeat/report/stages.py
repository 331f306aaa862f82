"""A network stage by stage, in numbers: shapes, parameters, arithmetic, bytes, receptive field."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from densefeat.heads import HeadedNet
from densefeat.nets import CrossLayerDepthwise, count_flops
from densefeat.report.connections import check_known, list_blocks
from densefeat.report.receptive import Field

_FLOAT_BYTES = 4
_COUNTED = (nn.Conv2d, nn.Linear, CrossLayerDepthwise)


@dataclass(frozen=True)
class Stage:
    """Part of a network, for one image.

    Attributes:
        shape: Of what it hands on.
        parameters, weight_bytes: The latter with the norms' statistics, in the precision that they are kept in.
        macs: Multiplications with an addition, of convolutions, cross-layer sums and the linear layer: twice that in FLOPs.
        activation_bytes: What these give, in float32.
        field: None for the head, which sees the whole map.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    weight_bytes: int
    macs: int
    activation_bytes: int
    field: Field | None


@dataclass
class Tally:
    """``macs``, and ``values`` that were given, since the last :meth:`take`."""

    macs: int = 0
    values: int = 0

    def run(self, module: nn.Module, x: Any) -> torch.Tensor:
        """Call a module and count its convolutions and linear layers; :meth:`add` counts the cross-layer sums."""
        outputs: list[torch.Tensor] = []
        flops = count_flops(lambda: outputs.append(module(x)))  # before the sum: the hooks add to it meanwhile
        self.macs += flops // 2
        return outputs[0]

    def add(self, module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, CrossLayerDepthwise):
            self.macs += output.numel() * module.num_inputs
        self.values += output.numel()

    def take(self) -> tuple[int, int]:
        taken = self.macs, self.values
        self.macs = self.values = 0
        return taken


@contextmanager
def _tallied(model: nn.Module) -> Iterator[Tally]:
    tally = Tally()
    handles = [module.register_forward_hook(tally.add) for module in model.modules() if isinstance(module, _COUNTED)]
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def stages_of(model: nn.Module, size: int) -> list[Stage]:
    """The stem, the blocks, the transitions and the head, for an image of ``size`` by ``size`` pixels; nothing is computed.

    Of a network with a head of ours, that is one more stage. Raises UsageError for one that is neither a DenseNet nor a
    DelugeNet.
    """
    if isinstance(model, HeadedNet):
        return [*stages_of(model.backbone, size), _head_stage(model, size)]
    check_known(model)
    sketch = deepcopy(model).to("meta").eval()
    x = _blank(sketch, size)
    stages, seen = [], Field()
    groups = _grouped(sketch)
    with torch.inference_mode(), _tallied(sketch) as tally:
        for name, modules in groups[:-1]:
            for module in modules:
                x, seen = tally.run(module, x), seen.after(module)
            stages.append(stage(name, modules, x, tally, seen))
        name, modules = groups[-1]
        for module in modules[:-1]:
            x = tally.run(module, x)
        stages.append(stage(name, modules, tally.run(sketch.forward_head, x), tally, None))  # type: ignore[arg-type]
    return stages


def _blank(sketch: nn.Module, size: int) -> torch.Tensor:
    """An image that has a shape and no pixels."""
    return torch.empty(1, int(getattr(sketch, "in_chans", 3)), size, size, device="meta")


def _head_stage(model: HeadedNet, size: int) -> Stage:
    """A head of ours, on the maps that it reads."""
    sketch = deepcopy(model).to("meta").eval()
    with torch.inference_mode():
        maps = sketch.backbone.forward_intermediates(_blank(sketch.backbone, size), intermediates_only=True)  # type: ignore[operator]
        with _tallied(sketch.head) as tally:
            logits = tally.run(sketch.head, maps)
    return stage(f"{model.kind} head", [sketch.head], logits, tally, None)


def stage(name: str, modules: Sequence[nn.Module], x: torch.Tensor, tally: Tally, seen: Field | None) -> Stage:
    macs, values = tally.take()
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Stage(name, tuple(x.shape[1:]), parameters, held, macs, _FLOAT_BYTES * values, seen)


def _grouped(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Modules in the order they run; the last group is the head, what follows the last block, with the classifier."""
    blocks = {name for name, _ in list_blocks(model)}
    groups: list[tuple[str, list[nn.Module]]] = [("stem", [])]
    for name, module in model.features.named_children():  # type: ignore[union-attr]
        if name in blocks or name.startswith("transition"):
            groups.append((name, []))
        elif groups[-1][0] in blocks:
            groups.append(("head", []))
        groups[-1][1].append(module)
    return [*groups[:-1], ("head", [*groups[-1][1], model.classifier])]  # type: ignore[list-item]


def total(stages: Sequence[Stage]) -> Stage:
    """All of them together, with the last one's shape."""
    sums = {name: sum(getattr(each, name) for each in stages)
            for name in ("parameters", "weight_bytes", "macs", "activation_bytes")}  # fmt: skip
    return Stage("all", stages[-1].shape, field=None, **sums)
