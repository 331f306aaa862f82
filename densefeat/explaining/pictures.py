"""Evidence laid over images: a picture for each row."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from densefeat.explaining.evidence import SCORES, spread_maps
from densefeat.images import Preprocessing
from densefeat.overlay import lay_heat

_EDGE = 224  # pixels of a panel, at least
_TOP = 99.0  # the percentile of a picture's largest map at which colours end


def enlarge_input(preprocessing: Preprocessing) -> Preprocessing:
    """Return a preprocessing of the same crop, at a resolution of 224 pixels a side or more, for people to look at."""
    return replace(preprocessing, size=preprocessing.size * math.ceil(_EDGE / preprocessing.size))


def list_lines(chosen: Sequence[int]) -> list[int]:
    """Return the positions of explained classes to show: one that is also the predicted class, the first, only once."""
    return [place for place, number in enumerate(chosen) if not place or number != chosen[0]]


def make_drawing(shapes: Mapping[str, tuple[int, ...]], named: Sequence[int], signed: bool) -> Callable[..., Image.Image]:
    """Return the function that draws a row: for each class a line of panels (the image, all evidence, that of each block).

    ``shapes``: ``(P, h, w)`` of the maps by name, that of all evidence first. ``named``: the classes besides the predicted one.
    All panels of a picture share one colour scale, and their maps one grid, on which those of the blocks add up to the first.
    ``signed``: red is for a class, blue against it.
    """
    first = next(iter(shapes))

    def draw(image: Image.Image, values: Mapping[str, np.ndarray]) -> Image.Image:
        maps = {name: torch.from_numpy(values[name].reshape(shape)).float() for name, shape in shapes.items()}
        grid = [spread_maps(each, shapes[first][1:]).numpy() for each in maps.values()]
        high = float(np.percentile(np.abs(grid[0]), _TOP if signed else 100))
        low = -high if signed else 0.0
        edge = image.width
        classes = list_lines([int(values[SCORES].argmax()), *named])
        sheet = Image.new("RGB", (edge * (1 + len(grid)), edge * len(classes)))
        for line, number in enumerate(classes):
            panels = [image, *(lay_heat(image, each[number], low, high, signed) for each in grid)]
            for place, panel in enumerate(panels):
                sheet.paste(panel, (edge * place, edge * line))
        return sheet

    return draw
