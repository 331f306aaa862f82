"""JPEGs: whether all of their data are there, because decoders fill what is missing."""

import io
import re

import numpy as np
from PIL import JpegImagePlugin

from densefeat.errors import DecodeError

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # without stuffed bytes and restart markers: none is in a scan
_END_OF_IMAGE = b"\xff\xd9"
_MORE_SCAN = bytes(range(1, 255))


def find_jpeg_end(data: bytes) -> int:
    """Find the position of a JPEG's end marker, behind all its segments and scans. Raises DecodeError where there is none.

    Without one Pillow would read the zeros of an interrupted download as pixels. What follows the marker does not matter.
    """
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if marker[0] == _END_OF_IMAGE:
            return marker.start()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise DecodeError("truncated: the JPEG has no end marker")


def check_last_rows(data: bytes, end: int, corner: np.ndarray) -> None:
    """Raise DecodeError for a JPEG whose scan ends before its pixels do.

    libjpeg fills the missing rows with mid-grey, without an error. But the ``corner`` (bottom right) of a complete image can be
    mid-grey too: then the image stays the same with more data at the end of the scan.
    """
    if corner.min() < 127 or corner.max() > 128:
        return
    longer = data[:end] + _MORE_SCAN + _END_OF_IMAGE
    pixels, filled = (np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg))) for jpeg in (data, longer))
    if not np.array_equal(pixels, filled):
        raise DecodeError("truncated: the JPEG ends before its last rows")
