"""PNGs: their checksums, and their chunks that matter, because Pillow refuses a whole image for a damaged remark in it."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import PngImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.orientation import read_orientation
from densefeat.images.samples import Samples, check_brightness

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = b"IDAT"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", _PIXELS, b"IEND")
_METADATA = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # may hold the orientation
_ANIMATION = b"acTL"
_MAX_METADATA = 2**20  # bytes of a chunk


@dataclass(frozen=True)
class Png:
    """A PNG's header, and ``data``: a PNG of its pixels and their meaning alone."""

    data: bytes
    width: int
    height: int
    animated: bool
    orientation: int

    def decode(self) -> np.ndarray:
        """Decode to uint8 RGB ``(h, w, 3)``, transparency over white. Raises DecodeError where 16 bits may be fewer.

        libpng keeps 16 bits and a transparent colour of any depth, and notices pixels that end early; Pillow does neither.
        """
        from imagecodecs import png_decode

        pixels = np.atleast_3d(png_decode(self.data))
        count = pixels.shape[2]  # palettes are RGB, and a transparent colour is a sample of its own by now
        colours = "grey" if count < 3 else "rgb"
        samples = Samples(colours, 8 * pixels.itemsize, alpha=count - 1 if count in (2, 4) else None)
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
    width, height = struct.unpack(">II", needed[1][8:16])
    return Png(b"".join(needed), width, height, animated, _read_orientation(metadata))


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
