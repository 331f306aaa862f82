"""An image as people see it, whole, or as the network read it, cropped."""

from collections.abc import Callable

from PIL import Image

from densefeat.images import Preprocessing
from densefeat.store import Decodable, shrink_image

_LARGEST = 2**15  # pixels a side


def view_whole(item: Decodable, edge: int = _LARGEST) -> Image.Image | None:
    """Return an image or tile as RGB, of at most ``edge`` pixels a side; None for a tile without content.

    Raises DecodeError for one that cannot be read.
    """
    decoded = item.decode()
    return None if decoded is None else shrink_image(decoded.pixels, edge)


def view_input(preprocessing: Preprocessing) -> Callable[[Decodable], Image.Image | None]:
    """Return a function like :func:`view_whole` that shows the network's input: a crop of ``size`` pixels a side."""
    geometry = preprocessing.geometry()

    def view(item: Decodable) -> Image.Image | None:
        decoded = item.decode()
        return None if decoded is None else shrink_image(geometry(decoded.pixels), preprocessing.size)

    return view
