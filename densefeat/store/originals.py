"""The images behind a store's rows, as thumbnails."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from densefeat.errors import DensefeatError
from densefeat.images import Decoded, Files, LocalFolder, Selected, Source, TiledSource, open_image, open_source
from densefeat.search import Entry
from densefeat.store.reader import Store

_EDGE = 160  # pixels
_QUALITY = 80
_AHEAD = 32  # images read or decoded at a time
_T = TypeVar("_T")


class Decodable(Protocol):
    def decode(self) -> Decoded | None: ...


def thumbnails(store: Store, wanted: Iterable[Entry], images: str | Path | None = None) -> tuple[dict[Entry, str], str | None]:
    """JPEG data URIs of the entries whose image is there and can be decoded; and why there is none at all, if that is so.

    ``images``: where they are, as in :func:`densefeat.images.sources.open_source`; None: where the job that made the store
    found them, unless that is on a network: nothing is fetched from an address that only a file names.
    """
    return thumbnails_by(store.provenance, wanted, images)


def thumbnails_by(
    provenance: dict[str, Any], wanted: Iterable[Entry], images: str | Path | None = None
) -> tuple[dict[Entry, str], str | None]:
    """As :func:`thumbnails`, by the provenance of a store."""
    return pictures_by(provenance, wanted, images, _thumbnail_of)


def pictures_by(
    provenance: dict[str, Any],
    wanted: Iterable[Entry],
    images: str | Path | None,
    picture_of: Callable[[Decodable], _T | None],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[Entry, _T], str | None]:
    """What ``picture_of`` makes of the entries' images, of several at a time; else as :func:`thumbnails_by`."""
    place = provenance.get("images") if images is None else str(images)
    if place is None:
        return {}, "the store does not tell where its images are: give --images"
    reading = provenance.get("input_options", {}) if images is None else {}
    for address in (place, reading.get("base") or ""):
        if images is None and ("://" in address or address.startswith("hf:")):
            return {}, f"the images were at {address}: give --images to fetch them"
    chosen = set(wanted)
    made: dict[Entry, _T] = {}
    try:
        source = _source_of(place, {entry.path for entry in chosen}, reading)
        items = _items_of(source, chosen, provenance.get("tiles"))
        with ThreadPoolExecutor() as pool:
            while some := list(islice(items, _AHEAD)):
                pictures = pool.map(picture_of, (item for _, item in some))
                made |= {entry: picture for (entry, _), picture in zip(some, pictures, strict=True) if picture is not None}
                progress(len(some))
    except DensefeatError as error:
        return made, str(error)
    return made, None


def _source_of(place: str, keys: set[str], reading: dict[str, Any]) -> Source:
    """Of the images with these keys alone; a folder is not listed for that. UsageError as open_source, or without a length.

    ``reading``: the other arguments of open_source.
    """
    names = pa.array(sorted(key.encode() for key in keys), pa.large_binary())
    if os.path.isdir(place) and not os.path.exists(os.path.join(place, "dataset_info.json")):
        return Files(LocalFolder(os.path.realpath(place), bool(reading.get("follow_links"))), names)
    source = open_source(place, **reading)
    positions = pc.index_in(names, source.keys()).drop_null()
    return Selected(source, np.sort(positions.to_numpy()))


def _items_of(source: Source, chosen: set[Entry], tiles: dict | None) -> Iterator[tuple[Entry, Decodable]]:
    """The entries, with what decodes to their pixels."""
    by_place = {(entry.path, entry.x, entry.y): entry for entry in chosen}
    view = TiledSource(source, tiles["tile"], tiles["stride"]) if tiles and source.length else source
    for item in view.items(0, view.length or 0):
        entry = by_place.get((item.key, getattr(item, "x", None), getattr(item, "y", None)))
        if entry is not None:
            yield entry, item


def _thumbnail_of(item: Decodable) -> str | None:
    """None for an image that cannot be read or decoded, for whatever reason: a page shows the others."""
    try:
        decoded = item.decode()
        return None if decoded is None else _data_uri(decoded.pixels)
    except Exception:
        return None


def thumbnail_of_file(path: str) -> str | None:
    """Of a query image."""
    try:
        return _data_uri(open_image(path, "pillow"))
    except DensefeatError:
        return None


def _data_uri(pixels: Image.Image | torch.Tensor) -> str:
    """A JPEG of at most ``EDGE`` pixels a side, from RGB pixels."""
    data = io.BytesIO()
    shrunk(pixels, _EDGE).save(data, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def shrunk(pixels: Image.Image | torch.Tensor, edge: int) -> Image.Image:
    """RGB, at most ``edge`` pixels a side."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image = image.convert("RGB")  # a copy: thumbnail works in place
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=3)
    return image
