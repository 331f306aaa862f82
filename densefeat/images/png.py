"""PNGs: their checksums, and their chunks that matter, because Pillow refuses a whole image for a damaged remark in it."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import PngImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.footprint import count_png_bytes
from densefeat.images.icc import MAX_PROFILE_BYTES
from densefeat.images.orientation import find_orientation
from densefeat.images.samples import Samples

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = b"IDAT"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", _PIXELS, b"IEND")
_PROFILE, _SIGNIFICANT_BITS = b"iCCP", b"sBIT"
_ORIENTED = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # may hold the orientation
_METADATA = (*_ORIENTED, _PROFILE, _SIGNIFICANT_BITS)
_ANIMATION, _TRANSPARENT, _FRAME = b"acTL", b"tRNS", b"fcTL"
_MAX_METADATA = 2**20  # bytes of a chunk; of a profile it is compressed
_MAX_CHUNKS = 2**18  # of 8 KB, as libpng writes them, they hold 2 GB
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type, palettes as the RGB that they become


@dataclass(frozen=True)
class Png:
    """A PNG's header.

    Attributes:
        data: A PNG of its pixels and their meaning alone.
        several: It is an animation.
        icc: Its colour profile, empty where that is damaged.
        significant_bits: Of a sample, as the program that wrote it says.
    """

    data: bytes
    width: int
    height: int
    several: bool
    orientation: int
    channels: int
    sample_bytes: int
    icc: bytes | None = None
    significant_bits: int | None = None
    format: str = "PNG"

    def count_bytes(self) -> int:
        """Count the bytes of memory that decoding takes."""
        return count_png_bytes(self.width, self.height, self.sample_bytes, self.channels)

    def decode(self) -> tuple[np.ndarray, Samples]:
        """Decode to samples ``(h, w, n)``, uint8 or uint16, and what they mean.

        libpng keeps 16 bits and a transparent colour of any depth, and notices pixels that end early; Pillow does neither.
        """
        from imagecodecs import png_decode

        pixels = np.atleast_3d(png_decode(self.data))
        count = pixels.shape[2]  # palettes are RGB, and a transparent colour is a sample of its own by now
        samples = Samples(
            "grey" if count < 3 else "rgb",
            8 * pixels.itemsize,
            alpha=count - 1 if count in (2, 4) else None,
            icc=self.icc,
        )
        if pixels.dtype == np.uint16 and self.significant_bits is not None:
            samples = _declare_range(pixels, samples, self.significant_bits)
        return pixels, samples


def _declare_range(pixels: np.ndarray, samples: Samples, bits: int) -> Samples:
    """Declare black and white of 16-bit samples of which so many bits are significant.

    They should be scaled to all 16, but many programs store the number as it is. A brighter one has been scaled. Transparency
    may be scaled where colours are not.
    """
    white = 2**bits - 1
    if samples.find_brightest(pixels) > white:
        return replace(samples, declared=(0, 2**16 - 1))
    if samples.alpha is not None and pixels[..., samples.alpha].max() > white:
        pixels[..., samples.alpha] >>= 16 - bits
    return replace(samples, declared=(0, white))


def read_png(file: BinaryIO, with_pixels: bool = True) -> Png:
    """Read a PNG's chunks; without pixels, those are skipped and ``data`` has none.

    Raises DecodeError where a chunk that matters is cut off, or does not match its checksum; others are left out then.
    """
    needed, oriented, several, transparent = [MAGIC], [MAGIC], False, False
    icc, significant_bits = None, None
    for name, chunk in _read_chunks(file, with_pixels):
        if name in _NEEDED:
            needed.append(chunk)
            if name == b"IHDR":
                oriented.append(chunk)
        elif name in _ORIENTED:
            oriented.append(chunk)
        elif name == _PROFILE:
            icc = _read_profile(chunk)
        elif name == _SIGNIFICANT_BITS:
            significant_bits = max(chunk[8:-4], default=None)
        several |= name == _ANIMATION
        transparent |= name == _TRANSPARENT
    if len(needed) < 2 or needed[1][4:8] != b"IHDR" or len(needed[1]) != 25:
        raise DecodeError("damaged: the PNG does not begin with its header")
    width, height, bits, colours = struct.unpack(">IIBB", needed[1][8:18])
    channels = _CHANNELS.get(colours, 4)
    channels += transparent and channels % 2  # a transparent colour becomes a channel
    if significant_bits is not None and not 0 < significant_bits < bits:
        significant_bits = None  # all bits say nothing that the header does not
    return Png(
        b"".join(needed), width, height, several, _read_orientation(oriented), channels, 1 + (bits > 8), icc, significant_bits
    )


def count_frames(file: BinaryIO) -> int:
    """Count the frames of a PNG, with the picture that programs show which know no animations."""
    names = [name for name, _ in _read_chunks(file, False) if name in (_ANIMATION, _FRAME, _PIXELS)]
    if _ANIMATION not in names[: names.index(_PIXELS)] if _PIXELS in names else True:
        return 1
    return names.count(_FRAME) + (_FRAME not in names[: names.index(_PIXELS)])


def _read_chunks(file: BinaryIO, with_pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """Read the chunks that matter, or may: the name, and the whole chunk; empty for one that was skipped."""
    end = file.seek(0, io.SEEK_END)
    file.seek(len(MAGIC))
    name, count = b"", 0
    while name != b"IEND" and len(head := file.read(8)) == 8:
        count += 1
        if count > _MAX_CHUNKS:
            raise DecodeError(f"more than {_MAX_CHUNKS:,} chunks in a PNG: write it again with another program")
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


def _read_profile(chunk: bytes) -> bytes:
    """Unpack a colour profile, behind its name; empty where it is damaged, and no more than is taken."""
    _, _, packed = chunk[8:-4].partition(b"\0")
    try:
        unpack = zlib.decompressobj()
        profile = unpack.decompress(packed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    return profile if unpack.eof else b""


def _describe_chunk(name: bytes) -> str:
    return "pixels" if name == _PIXELS else f"chunk {name.decode()}"


def _read_orientation(chunks: list[bytes]) -> int:
    """Read the EXIF orientation from a PNG without pixels; 1 where there is none that can be read."""
    if len(chunks) < 3:
        return 1
    end = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    pixels = struct.pack(">I4sI", 0, _PIXELS, zlib.crc32(_PIXELS))
    try:
        return find_orientation(PngImagePlugin.PngImageFile(io.BytesIO(b"".join([*chunks, pixels, end]))).info)
    except Exception:  # damaged metadata fails in many ways
        return 1
