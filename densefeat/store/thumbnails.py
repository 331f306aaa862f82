"""The images behind a store's rows, as thumbnails."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from densefeat.base import shorten_text
from densefeat.errors import DensefeatError
from densefeat.images import (
    MAX_TILES,
    MEMORY,
    DecodedImage,
    ImageFiles,
    Item,
    LocalFolder,
    PagedSource,
    PixelRule,
    SelectedSource,
    Source,
    TiledSource,
    complete_record,
    is_image_folder,
    make_visible,
    open_image,
    open_source,
)
from densefeat.store.entries import ImageEntry

_EDGE = 160  # pixels
_QUALITY = 80
_BATCH = 32  # images that are read and decoded at a time
_Picture = TypeVar("_Picture")


class Decodable(Protocol):
    """An image or a tile that can be decoded; None: a tile without content."""

    def decode(self) -> DecodedImage | None: ...


@dataclass(frozen=True)
class _RuledItem:
    """An item that is decoded as the store's images were."""

    item: Item
    rule: PixelRule

    def decode(self) -> DecodedImage | None:
        return self.item.decode("pillow", rule=self.rule)


def make_thumbnails(
    provenance: dict[str, Any], entries: Iterable[ImageEntry], images: str | Path | None = None
) -> tuple[dict[ImageEntry, str], str | None]:
    """Return JPEG data URIs of the entries whose image can be read and, where no image can be read at all, the reason.

    Args:
        provenance: That of the store.
        images: Where the images are, as in :func:`densefeat.images.sources.open_source`. None: no images are read. The place
            that the store records is only told: a store of someone else's may name any folder, and pages are sent around.
    """
    return make_pictures(provenance, entries, images, _make_thumbnail)


def make_pictures(
    provenance: dict[str, Any],
    entries: Iterable[ImageEntry],
    images: str | Path | None,
    make: Callable[[Decodable], _Picture | None],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[ImageEntry, _Picture], str | None]:
    """Do as :func:`make_thumbnails`, with another function that makes an entry's picture; several images at a time.

    An image that cannot be decoded, for whatever reason, has none: a page shows the others.
    """
    if images is None:
        return {}, _ask_for_images(provenance.get("images"), provenance.get("input_options") or {})

    def make_or_none(item: Decodable) -> _Picture | None:
        try:
            return make(item)
        except Exception:
            return None

    pictures: dict[ImageEntry, _Picture] = {}
    try:
        for entry, picture in read_pictures(provenance, entries, images, make_or_none):
            if picture is not None:
                pictures[entry] = picture
            progress(1)
    except DensefeatError as error:
        return pictures, str(error)
    return pictures, None


def read_pictures(
    provenance: dict[str, Any],
    entries: Iterable[ImageEntry],
    images: str | Path,
    make: Callable[[Decodable], _Picture],
) -> Iterator[tuple[ImageEntry, _Picture]]:
    """Yield the entries whose image is there, each with what ``make`` makes of it, in the order of the images.

    Several images are made at a time. Raises UsageError where ``images`` cannot be opened, and what ``make`` raises.
    """
    options = provenance.get("input_options") or {}
    distinct = set(entries)
    source = _open_images(str(images), {entry.path for entry in distinct}, options.get("image_column"))
    items = _find_items(source, distinct, provenance, _read_rule(provenance))
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(items, _BATCH)):
            made = pool.map(MEMORY.hold()(make), (item for _, item in batch))
            yield from zip((entry for entry, _ in batch), made, strict=True)


def _ask_for_images(recorded: Any, options: dict[str, Any]) -> str:
    """Say what to do for images to be shown. ``recorded``, ``options``: where the store's job found them."""
    if recorded is None:
        return "the store does not say where its images are: give --images"
    return f"give --images to show them; the store says that they are at {shorten_text(str(options.get('base') or recorded))}"


def _open_images(place: str, keys: set[str], image_column: str | None) -> Source:
    """Open the images with these keys; a folder on this machine is not listed for that.

    ``image_column``: that of the store's job, for tables. Raises UsageError as open_source does, or for a stream without a
    length.
    """
    names = pa.array(sorted(key.encode() for key in keys), pa.large_binary())
    if os.path.isdir(place) and not os.path.exists(os.path.join(place, "dataset_info.json")):
        return ImageFiles(LocalFolder(os.path.realpath(place)), names)
    source = open_source(place, image_column=None if is_image_folder(place) else image_column)
    positions = pc.index_in(names, source.keys()).drop_null()
    return SelectedSource(source, np.sort(positions.to_numpy()))


def _read_rule(provenance: dict[str, Any]) -> PixelRule:
    """Read the pixel rule of a store. Raises UsageError where what is recorded has no meaning."""
    preprocessing = provenance.get("preprocessing")
    return PixelRule.from_json(complete_record(preprocessing if isinstance(preprocessing, dict) else {})["pixels"])


def _find_items(
    source: Source, entries: set[ImageEntry], provenance: dict[str, Any], rule: PixelRule
) -> Iterator[tuple[ImageEntry, Decodable]]:
    """Yield the entries with the image, page or tile of each. ``provenance``: how the store's job took images apart."""
    by_place = {(entry.path, entry.page, entry.x, entry.y): entry for entry in entries}
    tiles, pages = provenance.get("tiles"), provenance.get("pages")
    view: Source = source if pages is None or not source.length else PagedSource(source, pages)
    if tiles and source.length:
        view = TiledSource(
            view, tiles["tile"], tiles["stride"], max_tiles=tiles.get("max_tiles", MAX_TILES), mpp=tiles.get("mpp")
        )
    for item in view.items(0, view.length or 0):
        page, x, y = (getattr(item, name, None) for name in ("page", "x", "y"))
        entry = by_place.get((item.key, page, x, y))
        if entry is not None:
            yield entry, _RuledItem(item, rule)


def _make_thumbnail(item: Decodable) -> str | None:
    decoded = item.decode()
    return None if decoded is None else encode_thumbnail(decoded.pixels)


def make_file_thumbnail(path: str, provenance: dict[str, Any]) -> str | None:
    """Return the data URI of an image file's thumbnail, by the pixel rule of a store; None if it cannot be decoded."""
    try:
        return encode_thumbnail(open_image(path, "pillow", _read_rule(provenance)))
    except DensefeatError:
        return None


def encode_thumbnail(pixels: Image.Image | torch.Tensor, edge: int = _EDGE) -> str:
    """Return what :func:`shrink_image` takes as the data URI of a JPEG of at most ``edge`` pixels a side."""
    file = io.BytesIO()
    shrink_image(pixels, edge).save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def shrink_image(pixels: Image.Image | torch.Tensor, edge: int) -> Image.Image:
    """Return an RGB image of at most ``edge`` pixels a side.

    ``pixels``: an image, uint8 ``(3, H, W)``, or float32 ``(C, H, W)``, of which the first three channels, or the first alone,
    are stretched to be seen.
    """
    if isinstance(pixels, Image.Image):
        image = pixels.convert("RGB")  # a copy: thumbnail works in place
    elif pixels.is_floating_point():
        image = Image.fromarray(make_visible(pixels.numpy()))
    else:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=3)
    return image
