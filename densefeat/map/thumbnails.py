"""Thumbnails of a store's rows, packed into sheets: one JPEG of 256 thumbnails is far smaller than 256 JPEGs."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from densefeat.overlay import view_whole
from densefeat.store import ImageEntry, make_pictures

_EDGE = 64  # pixels of a thumbnail's longest side
ACROSS = 16  # thumbnails in a row of a sheet
_JPEG_BLOCK = 16  # pixels that a JPEG codes together; thumbnails share none
_QUALITY = 80
_SAMPLE = 512  # thumbnails that are made first, to estimate how many fit
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Sheets:
    """Sheets of ``16 x 16`` squares, each with a thumbnail in its upper left corner.

    Attributes:
        edge: Pixels of a square's side.
        uris: The sheets, as data URIs of JPEGs.
        squares: int32 ``(n,)``, the square of each entry, counted over all sheets; -1 if it has none.
        sizes: uint8 ``(n, 2)``, width and height of each thumbnail.
        full: Whether there was no room for more.
        problem: Why none or few images could be read, or None.
    """

    edge: int
    uris: list[str]
    squares: np.ndarray
    sizes: np.ndarray
    full: bool = False
    problem: str | None = None


def make_sheets(
    provenance: dict[str, Any],
    entries: Sequence[ImageEntry],
    room: int,
    images: str | None,
    advance: Callable[[int], None],
) -> Sheets:
    """Make thumbnails of the entries, or of as many of them, evenly chosen, as fit into ``room`` bytes.

    ``images`` is where the images are; None: there are no thumbnails. An image that cannot be read is left out.
    """
    order = list(dict.fromkeys(entries[place] for place in _spread_order(len(entries)).tolist()))
    view = partial(view_whole, edge=_EDGE)
    made, problem = make_pictures(provenance, order[:_SAMPLE], images, view, advance)
    tried = min(_SAMPLE, len(order))
    if made and len(order) > _SAMPLE:
        each = sum(map(len, _pack_sheets(list(made.values()), _square_edge(made.values())))) / len(made)
        tried = max(_SAMPLE, min(len(order), int(room / each)))
        more, problem = make_pictures(provenance, order[_SAMPLE:tried], images, view, advance)
        made |= more
    chosen = [entry for entry in order if entry in made]
    edge = _square_edge(made.values())
    uris = _keep_within(_pack_sheets([made[entry] for entry in chosen], edge), room)
    places = {entry: place for place, entry in enumerate(chosen[: len(uris) * ACROSS**2])}
    squares = np.array([places.get(entry, -1) for entry in entries], np.int32)
    sizes = np.array([made[entry].size if entry in places else (0, 0) for entry in entries], np.uint8).reshape(-1, 2)
    return Sheets(edge, uris, squares, sizes, len(places) < len(chosen) or tried < len(order), problem)


def empty_sheets(count: int) -> Sheets:
    """Return sheets without thumbnails, with the arrays that ``count`` entries have."""
    return Sheets(_EDGE, [], np.full(count, -1, np.int32), np.zeros((count, 2), np.uint8))


def _spread_order(count: int) -> np.ndarray:
    """Return an order of ``count`` entries in which any first part is spread evenly over all."""
    return np.argsort(np.arange(count) * _GOLDEN_RATIO % 1, kind="stable")


def _square_edge(made: Iterable[Image.Image]) -> int:
    """Return the side of the squares: the longest side of an image, rounded up to a multiple of a JPEG's blocks."""
    longest = max((max(image.size) for image in made), default=_EDGE)
    return -(-longest // _JPEG_BLOCK) * _JPEG_BLOCK


def _pack_sheets(made: Sequence[Image.Image], edge: int) -> list[str]:
    """Return the data URIs of the sheets."""
    uris = []
    for start in range(0, len(made), ACROSS**2):
        some = made[start : start + ACROSS**2]
        sheet = Image.new("RGB", (ACROSS * edge, -(-len(some) // ACROSS) * edge))
        for place, image in enumerate(some):
            sheet.paste(_pad_to_square(image, edge), (place % ACROSS * edge, place // ACROSS * edge))
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=_QUALITY, optimize=True)
        uris.append("data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii"))
    return uris


def _pad_to_square(image: Image.Image, edge: int) -> Image.Image:
    """Fill a square by repeating the last row and column, since JPEG would smear black borders into the image."""
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, ((0, edge - image.height), (0, edge - image.width), (0, 0)), "edge"))


def _keep_within(uris: list[str], room: int) -> list[str]:
    """Return the first sheets, as many as have ``room`` characters together."""
    ends = np.cumsum([len(uri) for uri in uris])
    return uris[: int(np.searchsorted(ends, room, "right"))]
