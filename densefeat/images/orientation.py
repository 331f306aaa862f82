"""The EXIF orientation: how an image that a camera stored lying or upside down is turned upright."""

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from PIL import Image

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX = b"Exif\0\0"
_NUMBERS = {3: "H", 4: "L", 8: "h", 9: "l"}  # formats of EXIF's whole numbers
_XMP = re.compile(rb'tiff:Orientation(="|>)([0-9])')


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8, of an image that a caller has opened; 1 where there is none that can be read."""
    try:
        value = Image.Image.getexif(image).get(ORIENTATION_TAG)  # that of PNGs would first decode the pixels
    except Exception:  # damaged EXIF fails in many ways
        return 1
    return value if isinstance(value, int) else 1


def find_orientation(info: Mapping[Any, Any]) -> int:
    """Find the EXIF orientation, 1 to 8, in what Pillow has read beside the pixels; 1 where there is none that can be read.

    Only this entry is read. Pillow would read all, and as they may overlap, a few kilobytes can become gigabytes. XMP counts
    where EXIF does not say it.
    """
    value = _read_exif(info.get("exif") or _read_raw_profile(info.get("Raw profile type exif", "")))
    if value is not None:
        return value
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    match = _XMP.search(xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(match[2]) if match else 1


def _read_exif(exif: bytes) -> int | None:
    """Return the orientation in the first directory of EXIF data, None where it has none."""
    exif = exif.removeprefix(_PREFIX)
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return None
    order = "<" if exif[:2] == b"II" else ">"
    with suppress(struct.error):  # the directory is cut off
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHL", exif, entry)
            if tag == ORIENTATION_TAG and values == 1 and kind in _NUMBERS:
                return int(struct.unpack_from(order + _NUMBERS[kind], exif, entry + 8)[0])
    return None


def _read_raw_profile(text: str) -> bytes:
    """Read the EXIF data that ImageMagick writes into PNGs as text: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def swaps_sides(orientation: int) -> bool:
    """Check whether an upright image's width is the height of the stored one."""
    return orientation in (5, 6, 7, 8)
