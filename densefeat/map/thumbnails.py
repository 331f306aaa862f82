"""Small pictures of a store's rows, packed into sheets: one JPEG of 256 needs far less than 256 JPEGs."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from densefeat.search import Entry
from densefeat.store import Decodable, pictures_by, shrunk

_EDGE = 64  # pixels
ACROSS = 16  # thumbnails in a row of a sheet
_BLOCK = 16  # pixels of a JPEG that are coded together: thumbnails do not share any
_QUALITY = 80
_TRIED = 512  # thumbnails whose size tells how many fit
_GOLDEN = (5**0.5 - 1) / 2

_Progress = Callable[[int], None]


@dataclass(frozen=True)
class Sheets:
    """``uris``: of JPEGs, each ``16 x 16`` squares of ``edge`` pixels; ``squares``: int32 ``(n,)``, the square of each entry,
    counted over all sheets, -1 for none; ``sizes``: uint8 ``(n, 2)``, width and height in its square, from its upper left.

    ``full``: whether there was room for no more; ``problem``: why none or few could be read, or None.
    """

    edge: int
    uris: list[str]
    squares: np.ndarray
    sizes: np.ndarray
    full: bool = False
    problem: str | None = None


def sheets_of(
    provenance: dict[str, Any],
    entries: Sequence[Entry],
    room: int,
    images: str | None,
    progress: _Progress,
) -> Sheets:
    """Thumbnails of the entries, or of as many of them, evenly chosen, as ``room`` bytes hold.

    ``images``: where they are; None: where the store's job found them, unless that is on a network. An image that cannot be
    shown is left out.
    """
    order = list(dict.fromkeys(entries[place] for place in _evenly(len(entries)).tolist()))
    made, problem = pictures_by(provenance, order[:_TRIED], images, _small_image, progress)
    tried = min(_TRIED, len(order))
    if made and len(order) > _TRIED:
        each = sum(map(len, _pack(list(made.values()), _edge_of(made.values())))) / len(made)
        tried = max(_TRIED, min(len(order), int(room / each)))
        more, problem = pictures_by(provenance, order[_TRIED:tried], images, _small_image, progress)
        made |= more
    chosen = [entry for entry in order if entry in made]
    edge = _edge_of(made.values())
    uris = _within(_pack([made[entry] for entry in chosen], edge), room)
    places = {entry: place for place, entry in enumerate(chosen[: len(uris) * ACROSS**2])}
    squares = np.array([places.get(entry, -1) for entry in entries], np.int32)
    sizes = np.array([made[entry].size if entry in places else (0, 0) for entry in entries], np.uint8).reshape(-1, 2)
    return Sheets(edge, uris, squares, sizes, len(places) < len(chosen) or tried < len(order), problem)


def no_sheets(count: int) -> Sheets:
    """As many places as those of ``count`` points take."""
    return Sheets(_EDGE, [], np.full(count, -1, np.int32), np.zeros((count, 2), np.uint8))


def _evenly(count: int) -> np.ndarray:
    """An order of ``count`` places of which any beginning is spread over all."""
    return np.argsort(np.arange(count) * _GOLDEN % 1, kind="stable")


def _edge_of(made: Iterable[Image.Image]) -> int:
    """Of the squares: the longest side, in whole blocks."""
    longest = max((max(image.size) for image in made), default=_EDGE)
    return -(-longest // _BLOCK) * _BLOCK


def _pack(made: Sequence[Image.Image], edge: int) -> list[str]:
    """Data URIs of the sheets."""
    uris = []
    for start in range(0, len(made), ACROSS**2):
        some = made[start : start + ACROSS**2]
        sheet = Image.new("RGB", (ACROSS * edge, -(-len(some) // ACROSS) * edge))
        for place, image in enumerate(some):
            sheet.paste(_filled(image, edge), (place % ACROSS * edge, place // ACROSS * edge))
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=_QUALITY, optimize=True)
        uris.append("data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii"))
    return uris


def _filled(image: Image.Image, edge: int) -> Image.Image:
    """A square, the last row and column repeated: black beside an image would show in it once it is a JPEG."""
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, ((0, edge - image.height), (0, edge - image.width), (0, 0)), "edge"))


def _within(uris: list[str], room: int) -> list[str]:
    """The first that together have at most so many characters."""
    ends = np.cumsum([len(uri) for uri in uris])
    return uris[: int(np.searchsorted(ends, room, "right"))]


def _small_image(item: Decodable) -> Image.Image | None:
    """None for an image that cannot be read or decoded, for whatever reason: a page shows the others."""
    try:
        decoded = item.decode()
        return None if decoded is None else shrunk(decoded.pixels, _EDGE)
    except Exception:
        return None
