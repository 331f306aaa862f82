"""Channels that a TIFF stores as pages of their own: OME-TIFF and ImageJ's hyperstacks declare which pages they are."""

import re
from dataclasses import dataclass
from itertools import product
from typing import Any
from xml.etree.ElementTree import Element

from densefeat.errors import DecodeError
from densefeat.images.xml_text import parse_xml

_AXES = ("C", "Z", "T")
_NO_IMAGES = re.compile(r"\b(label|macro|thumbnail|overview)\b", re.IGNORECASE)  # names of images beside a slide
_MAX_PLANES = 100_000  # that a file declares
_MAX_NAME = 100  # characters of a channel's name
_PREFIX = re.compile(r"^(?:[cztCZT]:\d+/\d+\s*)+(?:-\s*)?")  # which ImageJ puts before a slice's label


@dataclass(frozen=True, slots=True)
class Stack:
    """An image of one or more channels: the number, from 0, of each channel's page, and the channels' names if all have one."""

    planes: tuple[int, ...]
    names: tuple[str, ...] = ()


def read_stacks(tiff: Any) -> list[Stack] | None:
    """Read which pages a TIFF declares to be channels of one image, in the order of the images.

    None where it declares nothing of that kind: each page is an image. Raises DecodeError for a declaration without a meaning.
    """
    page = tiff.pages.first
    if page.is_ome:
        return _read_ome(page.description)
    if tiff.is_imagej:
        return _read_imagej(tiff.imagej_metadata or {})
    return None


def _read_imagej(metadata: dict[str, Any]) -> list[Stack] | None:
    """Read ImageJ's description of a hyperstack, in which channels follow each other, then slices, then frames."""
    count, channels = (_read_count(metadata.get(name, 1)) for name in ("images", "channels"))
    if not 1 < count <= _MAX_PLANES or count % channels:
        return None
    labels = metadata.get("Labels")
    names = tuple(_clean_label(label) for label in labels[:channels]) if isinstance(labels, list) else ()
    return [Stack(tuple(range(first, first + channels)), _check_names(names, channels)) for first in range(0, count, channels)]


def _read_count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _clean_label(label: Any) -> str:
    return _PREFIX.sub("", str(label).partition("\n")[0]).strip()[:_MAX_NAME]


def _check_names(names: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """Return names that tell all channels of an image apart, or none; of one channel the name says nothing."""
    distinct = {name.casefold() for name in names if name}
    return names if 1 < channels == len(names) == len(distinct) else ()


def _read_ome(text: str) -> list[Stack] | None:
    root = parse_xml(text)
    if root is None:
        raise DecodeError("its OME-XML, which says what the pages are, cannot be read: export it again")
    stacks: list[Stack] = []
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None or (stacks and _NO_IMAGES.search(image.get("Name", ""))):
            continue
        found = _read_pixels(pixels)
        if found is None:
            return None
        stacks += found
        if len(stacks) > _MAX_PLANES:
            raise DecodeError(f"OME-XML of more than {_MAX_PLANES:,} planes")
    return stacks or None


def _read_pixels(pixels: Element) -> list[Stack] | None:
    """Read the stacks of one image of OME-XML: one for each place in Z and time, in the order of the file.

    None where its planes lie in several files: each of these is read by itself.
    """
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    if sorted(order) != sorted(_AXES):
        raise DecodeError(f"OME-XML with planes in the order {order!r}")
    samples, names = _read_channels(pixels)
    sizes = {axis: _read_number(pixels, f"Size{axis}", 1) for axis in _AXES}
    if min(sizes.values()) < 1 or sizes["C"] % samples or sizes["C"] * sizes["Z"] * sizes["T"] > _MAX_PLANES:
        raise DecodeError(f"OME-XML with planes of sizes {sizes}, {samples} samples a channel")
    sizes["C"] //= samples
    places = _locate_planes(pixels, [(axis, sizes[axis]) for axis in order], samples)
    if places is None:
        return None
    middle, outer = (axis for axis in order if axis != "C")
    stacks = []
    for last, first in product(range(sizes[outer]), range(sizes[middle])):
        at = {outer: last, middle: first}
        # a plane that no element names has a number that no page has
        planes = tuple(places.get((channel, at["Z"], at["T"]), _MAX_PLANES) for channel in range(sizes["C"]))
        stacks.append(Stack(planes, _check_names(names, sizes["C"])))
    return stacks


def _read_channels(pixels: Element) -> tuple[int, tuple[str, ...]]:
    """Return how many samples each channel has, and the channels' names."""
    channels = pixels.findall("{*}Channel")
    counts = {_read_number(channel, "SamplesPerPixel", 1) for channel in channels} or {1}
    if len(counts) > 1 or min(counts) < 1:
        raise DecodeError(f"OME-XML with channels of {', '.join(map(str, sorted(counts)))} samples")
    return counts.pop(), tuple(channel.get("Name", "").strip()[:_MAX_NAME] for channel in channels)


def _locate_planes(pixels: Element, order: list[tuple[str, int]], samples: int) -> dict[tuple[int, ...], int] | None:
    """Return the page of each plane by its channel, Z and time; None where some lie in other files.

    ``order``: the axes with their sizes, the one that changes fastest first.
    """
    places: dict[tuple[int, ...], int] = {}
    files = {uuid.get("FileName") for uuid in pixels.iterfind("{*}TiffData/{*}UUID")}
    if len(files) > 1:
        return None
    total = 1
    for _, size in order:
        total *= size
    named = 0
    for data in pixels.findall("{*}TiffData") or [Element("TiffData")]:
        start, step = 0, 1
        for axis, size in order:
            start += step * (_read_number(data, f"First{axis}", 0) // (samples if axis == "C" else 1))
            step *= size
        page = _read_number(data, "IFD", 0)
        count = _read_number(data, "PlaneCount", 1 if "IFD" in data.attrib else total)
        count = max(0, min(count, total - start))
        named += count
        if named > 2 * _MAX_PLANES:
            raise DecodeError("OME-XML that names its planes again and again")
        for number, plane in enumerate(range(start, start + count)):
            places[_locate(plane, order)] = page + number
    return places


def _locate(plane: int, order: list[tuple[str, int]]) -> tuple[int, ...]:
    """Return a plane's place in channels, Z and time."""
    place = {}
    for axis, size in order:
        plane, place[axis] = divmod(plane, size)
    return tuple(place[axis] for axis in _AXES)


def _read_number(element: Element, name: str, default: int) -> int:
    text = element.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        raise DecodeError(f"OME-XML with {name} {text[:_MAX_NAME]!r}")
    return int(text)
