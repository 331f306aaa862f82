"""PNGs: their checksums, and their chunks that matter, because Pillow refuses a whole image for a damaged remark in it."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.orientation import read_orientation
from densefeat.images.samples import Samples, check_brightness

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = b"IDAT"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", _PIXELS, b"IEND")
_METADATA = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # may hold the orientation
_ANIMATION = b"acTL"
_MAX_METADATA = 2**20  # bytes of a chunk
_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}  # by colour type
_GREY, _ALPHA = 0, (4, 6)


@dataclass(frozen=True)
class Png:
    """A PNG's header, and ``data``: a PNG of its pixels and their meaning alone."""

    data: bytes
    width: int
    height: int
    bits: int
    colour_type: int
    transparent: bool  # one of its colours or greys
    animated: bool
    orientation: int

    def decode(self) -> Image.Image:
        """Decode to a mode of Pillow's, transparency included. Raises DecodeError where 16 bits may be fewer."""
        odd_grey = self.colour_type == _GREY and self.bits < 8 and self.transparent  # Pillow confuses the transparent grey
        if self.bits == 16 or odd_grey:
            return Image.fromarray(self._decode_samples())
        image = PngImagePlugin.PngImageFile(io.BytesIO(self.data))
        image.load()  # here, where errors are expected, and in the thread that decodes
        return image

    def _decode_samples(self) -> np.ndarray:
        """Decode samples that Pillow does not keep whole to uint8 RGB ``(h, w, 3)``."""
        from imagecodecs import png_decode

        pixels = np.atleast_3d(png_decode(self.data))
        colours = _COLOURS[self.colour_type]
        colour_samples = 3 if colours == "rgb" else 1
        samples = Samples(colours, 8 * pixels.itemsize, alpha=colour_samples if pixels.shape[2] > colour_samples else None)
        if samples.may_be_shallow:
            check_brightness(samples.find_brightest(pixels))
        return samples.to_rgb(pixels)


def read_png(file: BinaryIO, with_pixels: bool = True) -> Png:
    """Read a PNG's chunks; without pixels, those are skipped and ``data`` has none.

    Raises DecodeError where a chunk that matters is cut off, or does not match its checksum; others are left out then.
    """
    needed, metadata, animated = [MAGIC], [MAGIC], False
    for name, chunk in _read_chunks(file, with_pixels):
        if name in _NEEDED:
            needed.append(chunk)
            if name == b"IHDR":
                metadata.append(chunk)
        elif name in _METADATA:
            metadata.append(chunk)
        animated |= name == _ANIMATION
    if len(needed) < 2 or needed[1][4:8] != b"IHDR" or len(needed[1]) != 25:
        raise DecodeError("damaged: the PNG does not begin with its header")
    width, height, bits, colour_type = struct.unpack(">IIBB", needed[1][8:18])
    transparent = any(chunk[4:8] == b"tRNS" for chunk in needed)
    return Png(b"".join(needed), width, height, bits, colour_type, transparent, animated, _read_orientation(metadata))


def _read_chunks(file: BinaryIO, with_pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """Read the chunks that matter, or may: the name, and the whole chunk; empty for one that was skipped."""
    end = file.seek(0, io.SEEK_END)
    file.seek(len(MAGIC))
    name = b""
    while name != b"IEND" and len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        place = file.tell()
        wanted = name in _NEEDED if with_pixels or name != _PIXELS else False
        if wanted and place + size + 4 > end:
            raise DecodeError(f"truncated: the PNG ends inside its chunk {name.decode()}")
        if wanted or (name in _METADATA and size <= _MAX_METADATA):
            chunk = head + file.read(size + 4)
            if zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:]):
                yield name, chunk
            elif wanted:
                raise DecodeError(f"truncated or damaged: the checksum of the PNG's {_describe_chunk(name)} is wrong")
        else:
            yield name, b""
        file.seek(place + size + 4)


def _describe_chunk(name: bytes) -> str:
    return "pixels" if name == _PIXELS else f"chunk {name.decode()}"


def _read_orientation(chunks: list[bytes]) -> int:
    """Read the EXIF orientation from a PNG without pixels; 1 where there is none that can be read."""
    if len(chunks) < 3:
        return 1
    end = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    pixels = struct.pack(">I4sI", 0, _PIXELS, zlib.crc32(_PIXELS))
    try:
        return read_orientation(PngImagePlugin.PngImageFile(io.BytesIO(b"".join([*chunks, pixels, end]))))
    except Exception:  # damaged metadata fails in many ways
        return 1
