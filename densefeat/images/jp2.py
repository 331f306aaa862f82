"""JPEG 2000: its file format (JP2, JPX), which says what a codestream's samples are, and codestreams alone (ISO 15444-1)."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images import jpeg_2000
from densefeat.images.icc import MAX_PROFILE_BYTES, SPACES
from densefeat.images.samples import COLOURS, Samples

MAGIC = b"\0\0\0\x0cjP  \r\n\x87\n"
_ENUMERATED = {12: "cmyk", 16: "rgb", 17: "grey", 18: "rgb"}  # colour spaces by number; OpenJPEG converts sYCC, which is 18
_BY_NUMBER, _BY_PROFILE = 1, (2, 3)  # ways to name a colour space
_COLOUR, _OPACITY, _PREMULTIPLIED = 0, 1, 2  # types of a channel
_MAX_BOXES = 10_000
_MAX_HEADER_BYTES = MAX_PROFILE_BYTES + 2**16
_COMPONENT_BYTES, _RGB = 6, 6  # of a sample while OpenJPEG decodes it; of a pixel
_HIDDEN = b"free"  # a box of no meaning


@dataclass
class _Boxes:
    """What the boxes of a file say.

    Attributes:
        codestream: Where it begins.
        codestreams: How many there are.
        number, icc: The colour space.
        profile_place: Where the type of the box with the profile lies.
        palette: Bits of each column of a palette.
        channels: Number and type of each channel.
    """

    codestream: int = 0
    codestreams: int = 0
    number: int | None = None
    icc: bytes | None = None
    profile_place: int | None = None
    palette: tuple[int, ...] = ()
    channels: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Jp2:
    """The header of a JPEG 2000 file. ``samples``: what is decoded; ``components``: of the codestream."""

    data: bytes
    width: int
    height: int
    several: bool
    components: int
    samples: Samples
    orientation: int = 1
    format: str = "JPEG 2000"

    def count_bytes(self) -> int:
        return self.width * self.height * (self.components * _COMPONENT_BYTES + _RGB)

    def decode(self) -> tuple[np.ndarray, Samples]:
        """Decode to samples, a palette applied. Raises DecodeError for a codestream of tiny or too many pieces."""
        from imagecodecs import jpeg2k_decode

        jpeg_2000.check_codestream(self.data)
        values = np.atleast_3d(jpeg2k_decode(self.data))
        if values.shape[:2] != (self.height, self.width):
            raise DecodeError(f"{values.shape[1]}×{values.shape[0]} pixels in place of {self.width}×{self.height}")
        return values, self.samples


def is_jpeg_2000(head: bytes) -> bool:
    """Check for a file or a codestream by its first bytes."""
    return head.startswith((MAGIC, jpeg_2000.MAGIC))


def read_jp2(file: BinaryIO, with_pixels: bool = True) -> Jp2:
    """Read the header of a file or codestream. Raises DecodeError where it is damaged, or has colours that are not read."""
    boxes = _read_boxes(file) if file.read(len(MAGIC)) == MAGIC else _Boxes(codestreams=1)
    if not boxes.codestreams:
        raise DecodeError("damaged or truncated: a JPEG 2000 file without a codestream")
    try:
        width, height, depths = _read_size(file, boxes.codestream)
    except struct.error as error:
        raise DecodeError("truncated: the JPEG 2000 codestream ends inside its header") from error
    data = b""
    if with_pixels:
        file.seek(0)
        data = file.read()
        if boxes.profile_place is not None:  # the decoder would convert colours itself
            data = data[: boxes.profile_place] + _HIDDEN + data[boxes.profile_place + 4 :]
    return Jp2(data, width, height, boxes.codestreams > 1, len(depths), _describe_samples(boxes, depths))


def _read_size(file: BinaryIO, place: int) -> tuple[int, int, list[int]]:
    """Read width and height of a codestream, and the depth of each component, from 128 on of signed samples."""
    file.seek(place)
    if file.read(len(jpeg_2000.MAGIC)) != jpeg_2000.MAGIC:
        raise DecodeError("damaged: the JPEG 2000 codestream does not begin with its size")
    _, _, right, bottom, left, top, *_, count = struct.unpack(">HH8LH", file.read(38))
    if not count or right <= left or bottom <= top:
        raise DecodeError(f"damaged: a JPEG 2000 codestream of {right - left}×{bottom - top} pixels and {count} components")
    components = file.read(3 * count)
    if len(components) < 3 * count:
        raise struct.error
    return right - left, bottom - top, list(components[::3])


def _describe_samples(boxes: _Boxes, depths: list[int]) -> Samples:
    depths = [bits - 1 for bits in boxes.palette] or depths
    signed, bits = depths[0] >> 7, (depths[0] & 0x7F) + 1
    channels = boxes.channels or dict.fromkeys(range(len(depths)), _COLOUR)
    alphas = [number for number, kind in channels.items() if kind in (_OPACITY, _PREMULTIPLIED)]
    colours = _find_colours(boxes, len(depths) - len(alphas))
    extra = len(depths) - COLOURS[colours]
    if colours == "grey" and extra > len(alphas):
        colours = "bands"
    alpha = None
    if alphas and colours != "bands":  # the decoder moves colours to the front
        alpha = COLOURS[colours] if extra == 1 else max(alphas[0], COLOURS[colours])
    return Samples(
        colours,
        0 if signed or bits > 16 else bits,
        alpha=alpha,
        premultiplied=alpha is not None and channels[alphas[0]] == _PREMULTIPLIED,
        icc=boxes.icc,
    )


def _find_colours(boxes: _Boxes, count: int) -> str:
    """Return what ``count`` samples that are not transparency are: a key of ``COLOURS``."""
    if boxes.number is not None:
        if boxes.number not in _ENUMERATED:
            raise DecodeError(f"JPEG 2000 with the colour space number {boxes.number}: convert to RGB")
        colours = _ENUMERATED[boxes.number]
    else:
        plain = {1: "grey", 3: "rgb"}.get(count, "bands")
        colours = plain if boxes.icc is None else SPACES.get(boxes.icc[16:20], plain)
    if count < COLOURS[colours]:
        raise DecodeError(f"damaged: {count} samples a pixel where {COLOURS[colours]} are needed")
    return colours


def _read_boxes(file: BinaryIO) -> _Boxes:
    """Read the boxes of a file. Raises DecodeError where there are more than any program writes."""
    boxes = _Boxes()
    end = file.seek(0, io.SEEK_END)
    for kind, place, size in _list_boxes(file, 0, end):
        if kind == b"jp2c":
            boxes.codestreams += 1
            if boxes.codestreams == 1:
                boxes.codestream = place
        elif kind == b"jp2h" and not boxes.codestreams:
            if size > _MAX_HEADER_BYTES:
                raise DecodeError(f"a JPEG 2000 header of {size:,} bytes, more than the limit of {_MAX_HEADER_BYTES:,}")
            _read_header_boxes(file, place, size, boxes)
    return boxes


def _read_header_boxes(file: BinaryIO, place: int, size: int, boxes: _Boxes) -> None:
    has_colours = False
    for kind, start, length in _list_boxes(file, place, place + size):
        file.seek(start)
        content = file.read(length)
        try:
            if kind == b"colr" and not has_colours:  # the first counts
                has_colours = True
                if content[0] == _BY_NUMBER:
                    (boxes.number,) = struct.unpack_from(">L", content, 3)
                elif content[0] in _BY_PROFILE:
                    boxes.icc, boxes.profile_place = content[3:], start - 4
            elif kind == b"pclr":
                boxes.palette = tuple((bits & 0x7F) + 1 for bits in content[3 : 3 + content[2]])
            elif kind == b"cdef":
                (count,) = struct.unpack_from(">H", content)
                rows = [struct.unpack_from(">HHH", content, 2 + 6 * i) for i in range(count)]
                boxes.channels = {number: meaning for number, meaning, _ in rows}
        except (IndexError, struct.error) as error:
            raise DecodeError(f"damaged: the JPEG 2000 box {kind.decode()} is cut off") from error


def _list_boxes(file: BinaryIO, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """List the type, place and size of the content of boxes."""
    for _ in range(_MAX_BOXES):
        file.seek(place)
        head = file.read(8)
        if place + 8 > end or len(head) < 8:
            return
        size, kind = struct.unpack(">L4s", head)
        start = place + 8
        if size == 1:
            start += 8
            size = int.from_bytes(file.read(8))
        elif size == 0:
            size = end - place
        if size < start - place:
            return
        yield kind, start, min(place + size, end) - start
        place += size
    raise DecodeError(f"a JPEG 2000 file of more than {_MAX_BOXES:,} boxes")
