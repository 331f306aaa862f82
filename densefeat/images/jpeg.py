"""JPEGs: a header without metadata, whether all data are there, because decoders fill what is missing, and how many scans."""

import io
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import JpegImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.memory import MEMORY

MAGIC = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # all that have a length, or end the image: none is in a scan
_METADATA = re.compile(rb"\xff[\xe1-\xed\xef\xfe]")  # all applications' segments but JFIF and Adobe's, and comments
_START_OF_IMAGE, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_APPLICATION_1, _APPLICATION_2 = b"\xff\xe1", b"\xff\xe2"
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"  # how segments of applications begin
_MAX_SEGMENTS, _MAX_STRAY_BYTES, _MAX_HEADER_BYTES = 10_000, 2**16, 2**25  # before the first scan, stray bytes in a row
_USUAL_SCANS = 20  # of a progressive JPEG at most: encoders make 10 or so
_COMPARE_BYTES = 14  # bytes a pixel
_NO_SCAN = _START_OF_SCAN + b"\0\2"
_MORE_SCAN = bytes(range(1, 255))


@dataclass(frozen=True)
class JpegHeader:
    """What precedes a JPEG's first scan.

    Attributes:
        tables: The beginning of the file, without metadata.
        info: The first EXIF and XMP data, and the colour profile, empty if it is incomplete, under Pillow's names.
        start: Where the scan begins in the file.
    """

    tables: bytes
    info: dict[Any, bytes]
    start: int

    def open(self, scans: bytes = _NO_SCAN) -> JpegImagePlugin.JpegImageFile:
        """Open the image with these scans; without any its size, mode and metadata can be read."""
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(self.tables + scans))
        image.info |= self.info
        return image


def read_jpeg_header(file: BinaryIO) -> JpegHeader:
    """Read a JPEG up to its first scan.

    Of its metadata only the colour profile and what may hold the orientation are kept. Pillow would keep all of it, read all
    entries of EXIF, which may overlap, join its pieces one by one, and skip bytes between segments one by one. Raises
    DecodeError where more precedes the scan than any camera or program writes there, or the file ends.
    """
    tables = [_START_OF_IMAGE]
    info: dict[Any, bytes] = {}
    profile: list[bytes] = []
    position = file.seek(len(_START_OF_IMAGE))
    for _ in range(_MAX_SEGMENTS):
        head = file.read(4)
        if not _MARKER.match(head):
            position = _find_marker(file, position)
            head = file.read(4)
        marker, size = head[:2], max(int.from_bytes(head[2:]), 2)
        if marker == _START_OF_SCAN:
            if profile:
                info["icc_profile"] = _join_profile(profile)
            return JpegHeader(b"".join(tables), info, position)
        if marker in (_START_OF_IMAGE, _END_OF_IMAGE):  # neither has a length
            position = file.seek(position + 2)
            continue
        position += 2 + size
        if marker == _APPLICATION_1:
            content = file.read(size - 2)
            if content.startswith(_EXIF):
                info.setdefault("exif", content)
            elif content.startswith(_XMP):
                info["xmp"] = content
        elif marker == _APPLICATION_2 and (start := file.read(min(len(_ICC), size - 2))) == _ICC:
            profile.append(file.read(size - 2 - len(start)))
        elif _METADATA.match(marker):
            file.seek(position)
        else:
            tables += head, file.read(size - 2)
        if position > _MAX_HEADER_BYTES:
            break
    raise DecodeError(f"more than {_MAX_HEADER_BYTES:,} bytes or {_MAX_SEGMENTS:,} segments before a JPEG's pixels")


def _join_profile(parts: list[bytes]) -> bytes:
    """Join the parts of a colour profile, each of which begins with its number and their count; empty where one is missing."""
    parts.sort()
    complete = len(parts) < 256 and all(part[:2] == bytes([i, len(parts)]) for i, part in enumerate(parts, 1))
    return b"".join(part[2:] for part in parts) if complete else b""


def _find_marker(file: BinaryIO, position: int) -> int:
    """Return the place of the next marker from ``position`` on, to which the file is moved."""
    file.seek(position)
    match = _MARKER.search(file.read(_MAX_STRAY_BYTES))
    if match is None:
        raise DecodeError("damaged or truncated: the JPEG has no pixels")
    return file.seek(position + match.start())


def check_scans(scans: int, width: int, height: int, max_pixels: int) -> None:
    """Raise DecodeError for a JPEG whose scans take longer to decode than those of the largest image would.

    Each scan visits all pixels, even if it has no data: an image of a hundred scans takes minutes.
    """
    if scans * width * height > _USUAL_SCANS * max_pixels:
        raise DecodeError(
            f"{scans:,} scans of {width}×{height} pixels take longer to decode than the {_USUAL_SCANS} of an image of"
            f" {max_pixels:,} pixels, the limit (--max-pixels)"
        )


def find_jpeg_end(data: bytes) -> tuple[int, int]:
    """Find the position of a JPEG's end marker, behind all its segments and scans, and count the scans.

    Without a marker Pillow would read the zeros of an interrupted download as pixels. What follows it does not matter. Raises
    DecodeError where there is none.
    """
    position, scans = 2, 0
    while marker := _MARKER.search(data, position):
        if marker[0] == _END_OF_IMAGE:
            return marker.start(), scans
        scans += marker[0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise DecodeError("truncated: the JPEG has no end marker")


def check_last_rows(data: bytes, header: JpegHeader, end: int, corner: np.ndarray) -> None:
    """Raise DecodeError for a JPEG, whose end marker is at ``end``, that has no data for its last rows.

    Decoders fill such rows with grey, so if the bottom right ``corner`` is grey it is decoded again with a longer last scan:
    if it is complete, nothing changes, because decoders ignore what follows the last row.
    """
    if corner.min() < 127 or corner.max() > 128:
        return
    scans = data[header.start : end]
    width, height = header.open().size
    with MEMORY.reserve(_COMPARE_BYTES * width * height, f"{width}×{height} pixels"):
        shorter, longer = (np.asarray(header.open(scans + more + _END_OF_IMAGE)) for more in (b"", _MORE_SCAN))
        if not np.array_equal(shorter, longer):
            raise DecodeError("truncated: the JPEG ends before its last rows")
