"""Compare the outputs of an exported file with those of the plain network, on photographs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from densefeat.errors import OutputError

_TOLERANCE = 1e-4  # largest difference, relative to an output's largest value
Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class BatchShape:
    """The size of a test batch: ``count`` images of ``height`` × ``width`` pixels."""

    count: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.count}×{self.height}×{self.width}"

    def pixels(self) -> torch.Tensor:
        """Cut pieces of photographs; the last of several images is noise. uint8 ``(N, H, W, 3)``, the same at every call."""
        random = np.random.default_rng(0)
        images = [_cut_piece(random, self.height, self.width) for _ in range(self.count)]
        if self.count > 1:
            images[-1] = random.integers(0, 256, images[-1].shape, np.uint8)
        return torch.from_numpy(np.stack(images))


def _cut_piece(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Resize a random rectangle of a photograph, whose sides are a third to all of the photograph's."""
    photograph = _load_photographs()[random.integers(2)]
    share = random.uniform(1 / 3, 1)
    across, down = (int(side * share) for side in photograph.size)
    left, top = int(random.integers(photograph.width - across + 1)), int(random.integers(photograph.height - down + 1))
    return np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + across, top + down)))


@cache
def _load_photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images  # slow to import

    return [Image.fromarray(image) for image in load_sample_images().images]


@dataclass(frozen=True)
class Differences:
    """The largest difference of each output, relative to its largest value, in ``runtime`` on ``batches``."""

    runtime: str
    batches: tuple[BatchShape, ...]
    largest: dict[str, float]


def measure_differences(
    runtime: str,
    run: Runner,
    plain: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    to_input: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[BatchShape],
    steps: Mapping[str, float] = MappingProxyType({}),
) -> Differences:
    """Run a file on each batch and compare its outputs with the plain network's.

    Args:
        runtime: Name of what runs the file.
        run: Runs the file: images as it takes them to its outputs, in order.
        plain: uint8 pixels ``(N, H, W, 3)`` to the plain network's outputs by name.
        to_input: uint8 pixels ``(N, H, W, 3)`` to images as the file takes them.
        steps: Outputs that change in steps, and the largest difference that is allowed, itself and not relative to a value.

    Raises:
        OutputError: Another shape, or a difference of more than :data:`_TOLERANCE`.
    """
    largest: dict[str, float] = {}
    batches = tuple(batches)
    for batch in batches:
        pixels = batch.pixels()
        expected = plain(pixels)
        for (name, values), output in zip(expected.items(), run(to_input(pixels)), strict=True):
            unit = 1.0 if name in steps else None
            largest[name] = _max_or_nan(largest.get(name, 0.0), _compute_difference(name, output, values, unit))
    for name, value in largest.items():
        if not value <= steps.get(name, _TOLERANCE):  # also true for NaN
            raise OutputError(
                f"the exported network's {name} differs from the plain one's by {value:.2g} of its largest value in {runtime}"
                f" ({', '.join(map(str, batches))}): nothing was written; please report it"
            )
    return Differences(runtime, batches, largest)


def _compute_difference(name: str, output: torch.Tensor, expected: torch.Tensor, unit: float | None) -> float:
    """Compute the largest difference, relative to ``unit``, or else the largest expected value.

    NaN where either tensor contains NaN. Whole numbers, such as labels, are equal or not: infinity if they are not.
    """
    if output.shape != expected.shape:
        raise OutputError(f"the exported network's {name} has shape {tuple(output.shape)}, not {tuple(expected.shape)}")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(output.to(expected.dtype), expected) else math.inf
    apart = (output.double() - expected.double()).abs().max()
    return float(apart / (unit or expected.double().abs().max().clamp(min=1e-30)))


def _max_or_nan(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
