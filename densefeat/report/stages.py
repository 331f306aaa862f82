"""A network stage by stage, in numbers: shapes, parameters, arithmetic, bytes, receptive field."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import nn

from densefeat.errors import UsageError
from densefeat.heads import HeadedNet
from densefeat.nets import CrossLayerDepthwise, count_flops
from densefeat.report.connections import check_known, list_blocks

_FLOAT_BYTES = 4
_COUNTED = (nn.Conv2d, nn.Linear, CrossLayerDepthwise)
_POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.Identity, nn.Dropout, CrossLayerDepthwise)


@dataclass(frozen=True)
class Field:
    """The receptive field of a map: a value sees ``size`` pixels a side, padding counted; neighbours are ``stride`` apart."""

    size: int = 1
    stride: int = 1

    def after(self, module: nn.Module) -> "Field":
        """Return the receptive field of the map that ``module`` makes of this one.

        The modules within are taken to run one after the other, as they do on the longest way through a dense block, where each
        layer reads the one before it, and through a DelugeNet's block. Raises UsageError for a module of other networks.
        """
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            return self._slide(
                _one_side(module.kernel_size), _one_side(module.stride), _one_side(getattr(module, "dilation", 1))
            )
        if isinstance(module, BlurPool2d):
            return self._slide(module.filt_size, module.stride)
        if isinstance(module, _POINTWISE):
            return self
        children = list(module.children())
        if not children:
            raise UsageError(f"{type(module).__name__}: its effect on the receptive field is not known")
        field = self
        for child in children:
            field = field.after(child)
        return field

    def _slide(self, kernel: int, stride: int, dilation: int = 1) -> "Field":
        return Field(self.size + dilation * (kernel - 1) * self.stride, self.stride * stride)


def _one_side(value: int | tuple[int, ...]) -> int:
    """Return a kernel's size or stride, which torch keeps as one number or as two equal ones."""
    return value if isinstance(value, int) else value[0]


@dataclass(frozen=True)
class Stage:
    """A part of a network, in numbers for one image.

    Attributes:
        shape: The shape of its output.
        parameters: The number of parameters.
        weight_bytes: Bytes of parameters and of the norms' statistics, in their own precision.
        macs: Multiply-adds of convolutions, cross-layer sums and the linear layer; FLOPs are twice that.
        activation_bytes: Bytes of the outputs of these, in float32.
        field: The receptive field; None for the head, which sees the whole map.
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
    """Multiply-adds and output values counted since the last :meth:`take`."""

    macs: int = 0
    values: int = 0

    def run(self, module: nn.Module, x: Any) -> torch.Tensor:
        """Call a module and count its convolutions and linear layers; hooks count the cross-layer sums."""
        outputs: list[torch.Tensor] = []
        flops = count_flops(lambda: outputs.append(module(x)))
        self.macs += flops // 2
        return outputs[0]

    def add(self, module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, CrossLayerDepthwise):
            self.macs += output.numel() * module.num_inputs
        self.values += output.numel()

    def take(self) -> tuple[int, int]:
        counts = self.macs, self.values
        self.macs = self.values = 0
        return counts


@contextmanager
def _count_operations(model: nn.Module) -> Iterator[Tally]:
    tally = Tally()
    handles = [module.register_forward_hook(tally.add) for module in model.modules() if isinstance(module, _COUNTED)]
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def stages_of(model: nn.Module, size: int) -> list[Stage]:
    """Describe stem, blocks, transitions and head for an image of ``size`` × ``size`` pixels, without computing it.

    A head of densefeat's own is one more stage. Raises UsageError for a network that is neither a DenseNet nor a DelugeNet.
    """
    if isinstance(model, HeadedNet):
        return [*stages_of(model.backbone, size), _describe_head(model, size)]
    check_known(model)
    sketch = deepcopy(model).to("meta").eval()
    x = _make_blank_image(sketch, size)
    stages, field = [], Field()
    groups = _group_modules(sketch)
    with torch.inference_mode(), _count_operations(sketch) as tally:
        for name, modules in groups[:-1]:
            for module in modules:
                x, field = tally.run(module, x), field.after(module)
            stages.append(_make_stage(name, modules, x, tally, field))
        name, modules = groups[-1]
        for module in modules[:-1]:
            x = tally.run(module, x)
        stages.append(_make_stage(name, modules, tally.run(sketch.forward_head, x), tally, None))  # type: ignore[arg-type]
    return stages


def _make_blank_image(sketch: nn.Module, size: int) -> torch.Tensor:
    """Return an image on the meta device, which has a shape and no pixels."""
    return torch.empty(1, int(getattr(sketch, "in_chans", 3)), size, size, device="meta")


def _describe_head(model: HeadedNet, size: int) -> Stage:
    """Describe a head of densefeat's own, on the maps that it reads."""
    sketch = deepcopy(model).to("meta").eval()
    with torch.inference_mode():
        maps = sketch.backbone.forward_intermediates(_make_blank_image(sketch.backbone, size), intermediates_only=True)  # type: ignore[operator]
        with _count_operations(sketch.head) as tally:
            logits = tally.run(sketch.head, maps)
    return _make_stage(f"{model.kind} head", [sketch.head], logits, tally, None)


def _make_stage(name: str, modules: Sequence[nn.Module], x: torch.Tensor, tally: Tally, field: Field | None) -> Stage:
    macs, values = tally.take()
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Stage(name, tuple(x.shape[1:]), parameters, weight_bytes, macs, _FLOAT_BYTES * values, field)


def _group_modules(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Group modules in the order in which they run; the last group is what follows the last block."""
    blocks = {name for name, _ in list_blocks(model)}
    groups: list[tuple[str, list[nn.Module]]] = [("stem", [])]
    for name, module in model.features.named_children():  # type: ignore[union-attr]
        if name in blocks or name.startswith("transition"):
            groups.append((name, []))
        elif groups[-1][0] in blocks:
            groups.append(("head", []))
        groups[-1][1].append(module)
    return [*groups[:-1], ("head", [*groups[-1][1], model.classifier])]  # type: ignore[list-item]


def sum_stages(stages: Sequence[Stage]) -> Stage:
    """Return the sum of all stages, with the last one's shape."""
    sums = {name: sum(getattr(stage, name) for stage in stages)
            for name in ("parameters", "weight_bytes", "macs", "activation_bytes")}  # fmt: skip
    return Stage("all", stages[-1].shape, field=None, **sums)
