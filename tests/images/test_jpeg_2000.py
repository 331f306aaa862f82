"""Codestreams of JPEG 2000 whose pieces are tiny are refused before they are decoded; those that encoders write pass."""

import io
import struct
import time
from functools import partial

import imagecodecs
import numpy as np
import pytest
import tifffile

from densefeat.errors import DecodeError
from densefeat.images import decode_image
from densefeat.images.jpeg_2000 import check_codestream

PIXELS = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
encode = partial(imagecodecs.jpeg2k_encode, PIXELS, codecformat="j2k", resolutions=2)
PLAIN = encode()
CODING, TILE_PART = PLAIN.index(b"\xff\x52"), PLAIN.index(b"\xff\x90")


def with_precincts(sizes: bytes) -> bytes:
    """Change the header's coding style: one size for each resolution."""
    length = int.from_bytes(PLAIN[CODING + 2 : CODING + 4])
    segment = PLAIN[CODING : CODING + 2 + length]
    assert len(sizes) == segment[9] + 1
    changed = b"\xff\x52" + struct.pack(">H", length + len(sizes)) + bytes([segment[4] | 1]) + segment[5:] + sizes
    return PLAIN[:CODING] + changed + PLAIN[CODING + 2 + length :]


def with_component_style(sizes: bytes, in_tile: bool) -> bytes:
    """Add a coding style for the second component, to the header or to that of the tile."""
    style = b"\1\1" + PLAIN[CODING + 9 : CODING + 14] + sizes
    segment = b"\xff\x53" + struct.pack(">H", 2 + len(style)) + style
    if not in_tile:
        return PLAIN[:TILE_PART] + segment + PLAIN[TILE_PART:]
    size = struct.pack(">L", int.from_bytes(PLAIN[TILE_PART + 6 : TILE_PART + 10]) + len(segment))
    head = PLAIN[TILE_PART : TILE_PART + 6] + size + PLAIN[TILE_PART + 10 : TILE_PART + 12]
    return PLAIN[:TILE_PART] + head + segment + PLAIN[TILE_PART + 12 :]


@pytest.mark.parametrize(
    "data", [PLAIN, encode(codecformat="jp2"), encode(level=30), with_precincts(b"\x77\x88"), with_precincts(b"\x55\x55")]
)
def test_what_encoders_write_passes(data: bytes) -> None:
    check_codestream(data)


@pytest.mark.parametrize(
    "data",
    [
        with_precincts(b"\x00\x11"),
        with_precincts(b"\x88\x48"),
        with_precincts(b"\x84\x88"),
        with_component_style(b"\x00\x11", in_tile=False),
        with_component_style(b"\x00\x11", in_tile=True),
        PLAIN + with_precincts(b"\x00\x11"),
    ],
)
def test_tiny_precincts_fail(data: bytes) -> None:
    with pytest.raises(DecodeError, match="precincts of fewer than 32 pixels"):
        check_codestream(data)


def test_many_tiles_fail() -> None:
    size = PLAIN.index(b"\xff\x51")
    data = PLAIN[: size + 22] + struct.pack(">LL", 2, 2) + PLAIN[size + 30 :]
    with pytest.raises(DecodeError, match="JPEG 2000 of 16,384 tiles, more than the limit of 4,096"):
        check_codestream(data)


def test_headers_that_are_cut_off_are_left_to_the_decoder() -> None:
    for end in range(TILE_PART + 12):
        check_codestream(PLAIN[:end])


def test_tiny_precincts_of_a_tiff_are_a_failure_at_once() -> None:
    """A file of kilobytes, for which OpenJPEG would take gigabytes and minutes."""
    side = 4096
    tile = with_precincts(b"\x00\x11")
    place = tile.index(b"\xff\x51")
    large = struct.pack(">LLLLLL", side, side, 0, 0, side, side)
    tile = tile[: place + 6] + large + tile[place + 30 :]
    file = io.BytesIO()
    layout = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (side, side), "photometric": "rgb"}
    tifffile.imwrite(file, iter([tile]), compression="jpeg2000", **layout)
    started = time.process_time()
    with pytest.raises(DecodeError, match="segment 0: JPEG 2000 with precincts of fewer than 32 pixels"):
        decode_image(file.getvalue())
    assert time.process_time() - started < 2
