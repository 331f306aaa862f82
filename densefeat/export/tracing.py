"""Trace a network by torch.export for batches of any size and, where the network allows it, images of any size."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from densefeat.base import describe_error
from densefeat.errors import OutputError
from densefeat.export.check import BatchShape
from densefeat.export.module import ExportedNet

# Candidates for the smallest side in pixels. torch specialises a trace on maps of one pixel, so small images may not fit.
_SMALLEST_SIDES = (32, 64, 96, 128)

_ToInput = Callable[[torch.Tensor], torch.Tensor]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TracedNet:
    """A traced network and the image sizes that it takes.

    ``sizes``: "any" or "multiples of 32", from ``smallest`` pixels a side, or "fixed", which is ``size`` alone.
    ``takes_pixels``: images are uint8 ``(N, H, W, 3)``, else float32 ``(N, 3, H, W)``.
    """

    program: ExportedProgram
    size: int
    takes_pixels: bool
    sizes: str = "fixed"
    smallest: int = 0

    def batches(self) -> list[BatchShape]:
        """Return the batches to measure its files on: two numbers of images and, where sizes are free, more sizes."""
        sizes = () if self.sizes == "fixed" else _TEST_SIZES[self.sizes](self.smallest)
        others = [BatchShape(count, *size) for count, size in zip(cycle((2, 1)), sizes, strict=False)]
        return [BatchShape(1, self.size, self.size), BatchShape(3, self.size, self.size), *others]

    @property
    def symbols(self) -> dict[str, str]:
        """Our names of the variable dimensions of the input, by torch's symbols."""
        names = ("batch", "height", "width", "") if self.takes_pixels else ("batch", "", "height", "width")
        lengths = zip(_read_image_shape(self.program), names, strict=True)
        return {str(length): name for length, name in lengths if not isinstance(length, int)}


_TEST_SIZES: dict[str, Callable[[int], tuple[tuple[int, int], ...]]] = {  # sizes that show which rule holds
    "any": lambda smallest: (
        (smallest + 65, smallest + 99),
        (smallest + 1, smallest),
        (smallest, smallest),
        (smallest + 1, smallest + 3),
    ),
    "multiples of 32": lambda smallest: ((smallest + 64, smallest + 96), (smallest, smallest)),
}


def trace(net: ExportedNet, to_input: _ToInput, size: int) -> TracedNet:
    """Trace a network for images of any size, or else multiples of 32, or else ``size`` alone.

    ``to_input``: uint8 pixels ``(N, H, W, 3)`` to images as the module takes them. Raises OutputError where torch.export fails.
    """
    example = to_input(BatchShape(2, size, size).pixels())
    try:
        program = _export_program(net, example, (1, 2) if net.takes_pixels else (2, 3))
        if allowed := _find_sizes(program, net, to_input):
            return TracedNet(program, size, net.takes_pixels, *allowed)
    except Exception as error:  # other people's networks, and torch on variable sizes, raise errors of many types
        _logger.debug("%s: no open size: %s", type(net.model).__name__, error)
    return trace_fixed(net, to_input, size)


def trace_fixed(net: ExportedNet, to_input: _ToInput, size: int) -> TracedNet:
    """Trace a network for images of one size. Raises OutputError where torch.export fails."""
    try:
        return TracedNet(_export_program(net, to_input(BatchShape(2, size, size).pixels()), ()), size, net.takes_pixels)
    except Exception as error:  # torch.export raises errors of many types
        reason = describe_error(error)
        raise OutputError(f"{type(net.model).__name__} cannot be traced ({type(error).__name__}: {reason})") from error


def _export_program(net: ExportedNet, example: torch.Tensor, sides: tuple[int, ...]) -> ExportedProgram:
    """Export a program. ``sides``: the dimensions of the images that vary besides the first."""
    variable: dict[int, Any] = {0: Dim("batch", min=1)} | dict.fromkeys(sides, Dim.AUTO)
    with torch.no_grad():
        program = torch.export.export(net, (example,), dynamic_shapes={"images": variable}, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine, which would go into the files
    return program


def _find_sizes(program: ExportedProgram, net: ExportedNet, to_input: _ToInput) -> tuple[str, int] | None:
    """Find by trials the rule for sizes and the smallest side: torch does not record all that the code requires."""
    if sum(not isinstance(length, int) for length in _read_image_shape(program)) < 3:
        return None
    module = program.module()
    for allowed, sizes in _TEST_SIZES.items():
        for smallest in _SMALLEST_SIDES:
            batches = [to_input(BatchShape(1, *size).pixels()) for size in sizes(smallest)]
            if all(_accepts(net, images) and _accepts(module, images) for images in batches):
                return allowed, smallest
    return None


def _accepts(module: Any, images: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            module(images)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _read_image_shape(program: ExportedProgram) -> torch.Size:
    name = program.graph_signature.user_inputs[0]
    return next(node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
