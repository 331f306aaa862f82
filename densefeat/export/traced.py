"""A network traced by torch.export, for any batch and, where the network lets it, any size."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from densefeat.errors import OutputError
from densefeat.export.check import Batch
from densefeat.export.module import ExportedNet

_LOWEST = (32, 64, 96, 128)  # pixels a side that may be the fewest: torch traces a map of one pixel apart from larger ones

_Given = Callable[[torch.Tensor], torch.Tensor]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traced:
    """``sizes``: of images that it takes: any or multiples of 32, from ``smallest`` pixels a side, or fixed: ``size`` alone.

    ``takes_pixels``: images are ``(N, H, W, 3)``, else ``(N, 3, H, W)``.
    """

    program: ExportedProgram
    size: int
    takes_pixels: bool
    sizes: str = "fixed"
    smallest: int = 0

    def batches(self) -> list[Batch]:
        """To measure its files on: two numbers of images, and where sizes are free more sizes."""
        sizes = () if self.sizes == "fixed" else _TRIED[self.sizes](self.smallest)
        others = [Batch(count, *size) for count, size in zip(cycle((2, 1)), sizes, strict=False)]
        return [Batch(1, self.size, self.size), Batch(3, self.size, self.size), *others]

    @property
    def symbols(self) -> dict[str, str]:
        """torch's names for what is open in the images' shape, and ours."""
        names = ("batch", "height", "width", "") if self.takes_pixels else ("batch", "", "height", "width")
        lengths = zip(_image_shape(self.program), names, strict=True)
        return {str(length): name for length, name in lengths if not isinstance(length, int)}


_TRIED: dict[str, Callable[[int], tuple[tuple[int, int], ...]]] = {  # sizes that tell which are allowed
    "any": lambda smallest: (
        (smallest + 65, smallest + 99),
        (smallest + 1, smallest),
        (smallest, smallest),
        (smallest + 1, smallest + 3),
    ),
    "multiples of 32": lambda smallest: ((smallest + 64, smallest + 96), (smallest, smallest)),
}


def trace(net: ExportedNet, given: _Given, size: int) -> Traced:
    """Trace for images of any size, or of as many as possible.

    ``given``: uint8 pixels ``(N, H, W, 3)`` to images as the module takes them. Raises OutputError where torch.export cannot.
    """
    example = given(Batch(2, size, size).pixels())
    try:
        program = _exported(net, example, (1, 2) if net.takes_pixels else (2, 3))
        if allowed := _allowed_sizes(program, net, given):
            return Traced(program, size, net.takes_pixels, *allowed)
    except Exception as error:  # of networks that are not ours, whatever their code or torch says to an open size
        _logger.debug("%s: no open size: %s", type(net.model).__name__, error)
    return trace_fixed(net, given, size)


def trace_fixed(net: ExportedNet, given: _Given, size: int) -> Traced:
    """For images of one size. Raises OutputError where torch.export cannot."""
    try:
        return Traced(_exported(net, given(Batch(2, size, size).pixels()), ()), size, net.takes_pixels)
    except Exception as error:  # in many types
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise OutputError(f"{type(net.model).__name__} cannot be traced ({type(error).__name__}: {reason})") from error


def _exported(net: ExportedNet, example: torch.Tensor, sides: tuple[int, ...]) -> ExportedProgram:
    """``sides``: which dimensions of the images are open besides the first."""
    open_dims: dict[int, Any] = {0: Dim("batch", min=1)} | dict.fromkeys(sides, Dim.AUTO)
    with torch.no_grad():
        program = torch.export.export(net, (example,), dynamic_shapes={"images": open_dims}, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine, and would go into the files
    return program


def _allowed_sizes(program: ExportedProgram, net: ExportedNet, given: _Given) -> tuple[str, int] | None:
    """Which, and from how many pixels, by trying: torch does not tell all that the network's code asked of the sizes."""
    if sum(not isinstance(length, int) for length in _image_shape(program)) < 3:
        return None
    module = program.module()
    for allowed, sizes in _TRIED.items():
        for smallest in _LOWEST:
            batches = [given(Batch(1, *size).pixels()) for size in sizes(smallest)]
            if all(_takes(net, images) and _takes(module, images) for images in batches):
                return allowed, smallest
    return None


def _takes(module: Any, images: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            module(images)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _image_shape(program: ExportedProgram) -> torch.Size:
    name = program.graph_signature.user_inputs[0]
    return next(node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
