"""A look at a JPEG 2000 codestream before OpenJPEG decodes it: tiny pieces take a thousand times the memory of their pixels."""

import re
import struct
from contextlib import suppress

from densefeat.errors import DecodeError

MAGIC = b"\xff\x4f\xff\x51"
_START = re.compile(rb"\xff\x4f\xff\x51")  # of a codestream, with the marker of its size
_CODING, _COMPONENT_CODING, _TILE_PART, _TILE_DATA, _END = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_LEAST_PRECINCT = 5  # the power of two of its edge in pixels; encoders write 7 or more
_MAX_TILES = 4096
_MAX_SEGMENTS = 100_000


def check_codestream(data: bytes) -> None:
    """Raise DecodeError for a codestream of tiny precincts or of too many tiles. A damaged header is left to the decoder."""
    for start in _START.finditer(data):  # a box before the codestream may hold what looks like another one
        with suppress(struct.error):  # the header is cut off
            width, height, _, _, tile_width, tile_height, left, top, components = struct.unpack_from(
                ">8LH", data, start.start() + 8
            )
            tiles = -(-(width - left) // max(tile_width, 1)) * -(-(height - top) // max(tile_height, 1))
            if tiles > _MAX_TILES:
                raise DecodeError(f"JPEG 2000 of {tiles:,} tiles, more than the limit of {_MAX_TILES:,}")
            _check_precincts(data, start.start() + 2, components)


def _check_precincts(data: bytes, position: int, components: int) -> None:
    """Check the precincts that the header and the headers of tile parts name, from the segment at ``position`` on."""
    tile_part = end = 0
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _END:
            return
        if marker == _TILE_DATA:
            if end <= tile_part:  # the last tile part reaches to the end of the data
                return
            position = end
            continue
        if marker == _TILE_PART:
            tile_part = position
            end = position + struct.unpack_from(">L", data, position + 6)[0]
        elif marker in (_CODING, _COMPONENT_CODING):
            # the style says whether sizes of precincts follow: behind nine other bytes, in COC behind five
            style = position + 4 + (0 if marker == _CODING else 1 if components < 257 else 2)
            sizes = style + (10 if marker == _CODING else 6)
            precincts = data[sizes : position + 2 + length]
            if data[style : style + 1] and data[style] & 1 and any(_is_tiny(size) for size in precincts):
                raise DecodeError("JPEG 2000 with precincts of fewer than 32 pixels, each of which takes kilobytes")
        position += 2 + max(length, 2)
    raise DecodeError(f"JPEG 2000 of more than {_MAX_SEGMENTS:,} segments")


def _is_tiny(size: int) -> bool:
    """Check a precinct's size, the powers of two of its width and height."""
    return min(size & 15, size >> 4) < _LEAST_PRECINCT
