"""The orientation is read as Pillow reads it, without the rest of the metadata."""

import io
import random
import struct
import tracemalloc
from typing import Any

import pytest
from PIL import Image

from densefeat.images.orientation import find_orientation, read_orientation
from support.hostile import make_exif_of_overlaps

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def directory(order: str, *entries: tuple[int, int, int, bytes], prefix: bytes = b"Exif\0\0") -> bytes:
    """Return EXIF data with these entries: tag, type, count, value."""
    packed = b"".join(
        struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(entries))
    return prefix + head + packed + bytes(4)


def ask_pillow(info: dict[str, Any]) -> int:
    image = Image.new("RGB", (1, 1))
    image.info |= info
    return read_orientation(image)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "form"), [(3, "H"), (4, "L"), (8, "h"), (9, "l")])
def test_numbers_of_any_kind(order: str, kind: int, form: str) -> None:
    for prefix in (b"", b"Exif\0\0"):
        exif = directory(order, (0x10F, 2, 3, b"ab"), (0x112, kind, 1, struct.pack(order + form, 6)), prefix=prefix)
        assert find_orientation({"exif": exif}) == 6 == ask_pillow({"exif": exif})


@pytest.mark.parametrize(
    ("info", "orientation"),
    [
        ({}, 1),
        ({"exif": b""}, 1),
        ({"exif": b"Exif\0\0"}, 1),
        ({"exif": b"Exif\0\0II*\0"}, 1),
        ({"exif": directory("<", (0x112, 3, 2, b"\6\0\6\0"))}, 1),  # two values
        ({"exif": directory("<", (0x112, 2, 1, b"6"))}, 1),  # text
        ({"exif": directory("<", (0x112, 3, 1, b"\6"))[:20]}, 1),
        ({"exif": directory("<", (0x112, 3, 1, b"\3"), (0x112, 3, 1, b"\6"))}, 3),
        ({"xmp": XMP}, 6),
        ({"XML:com.adobe.xmp": XMP.decode()}, 6),
        ({"exif": directory("<", (0x10F, 2, 3, b"ab")), "xmp": XMP}, 6),
        ({"exif": directory("<", (0x112, 3, 1, b"\3")), "xmp": XMP}, 3),
        ({"xmp": b"tiff:Orientation>8</tiff:Orientation>"}, 8),
        ({"Raw profile type exif": "\nexif\n  46\n" + directory("<", (0x112, 3, 1, b"\6")).hex()}, 6),
        ({"Raw profile type exif": "\nexif\n  46\nno digits"}, 1),
    ],
)
def test_the_same_as_pillow(info: dict[str, Any], orientation: int) -> None:
    assert find_orientation(info) == orientation == ask_pillow(info)


def test_damaged_directories_are_read_as_far_as_they_go() -> None:
    """Whatever bytes change, there is a number and no error."""
    chance = random.Random(0)
    whole = directory(">", (0x10F, 2, 3, b"ab"), (0x112, 3, 1, b"\0\6"), (0x11A, 5, 1, struct.pack(">L", 8)))
    for _ in range(5000):
        data = bytearray(whole[: chance.randrange(len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        assert isinstance(find_orientation({"exif": bytes(data)}), int)


def test_entries_that_overlap_take_no_memory() -> None:
    exif = make_exif_of_overlaps(65_000, 2700)
    tracemalloc.start()
    try:
        assert find_orientation({"exif": exif}) == 6
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_images_that_callers_have_opened_keep_their_orientation() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 8
    Image.new("RGB", (3, 2)).save(file, "TIFF", exif=exif)
    assert read_orientation(Image.open(file)) == 8
