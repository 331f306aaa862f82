"""Small files that would take a program gigabytes or minutes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def make_exif_of_overlaps(size: int, entries: int) -> bytes:
    """Make EXIF data, turned by 90°, with entries that each cover all ``size`` bytes."""
    rows = b"".join(struct.pack("<HHLL", 0x8000 + i, 7, size - 8, 8) for i in range(entries - 1))
    head = b"II*\0" + struct.pack("<LH", 8, entries) + struct.pack("<HHLL", 0x112, 3, 1, 6)
    return (b"Exif\0\0" + head + rows + bytes(4)).ljust(size + 6, b"\0")


def make_segment(marker: bytes, content: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return marker + struct.pack(">H", len(content) + 2) + content


def add_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Put segments at the beginning of a JPEG."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_small_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))


def make_empty_webp(width: int, height: int) -> bytes:
    """Make an animated WebP of this size without a frame."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<L", 10) + b"\x12\0\0\0" + size
    return b"RIFF" + struct.pack("<L", len(chunks) + 4) + b"WEBP" + chunks


def make_png_of_zeros(width: int, height: int) -> bytes:
    """Make a black PNG, a row at a time."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    pixels = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    chunks = ((b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    packed = (struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def add_scans(jpeg: bytes, count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG, with no data."""
    last = jpeg.rindex(b"\xff\xda")
    head = jpeg[last : last + 2 + int.from_bytes(jpeg[last + 2 : last + 4])]
    return jpeg[:-2] + count * head + jpeg[-2:]
