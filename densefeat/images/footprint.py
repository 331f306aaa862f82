"""How much memory decoding takes, told from headers: what decoders and conversions allocate, and resizing after them.

The bytes for a pixel are measured, as the most that a process grew by while an image of that kind was decoded.
"""

import io
from typing import BinaryIO

from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples

_SHORT_SIDE = 512  # to which an image may be resized before it is cropped
_RESIZED = 8  # bytes a pixel of the resized image, with what it is resized in
_WEBP = 17  # bytes a pixel, of which libwebp keeps two canvases as long as the image is open
_ALPHA_WEBP, _ALPHA = 32, 20  # transparency is laid over white
_TURNED = 4
_DICOM_GREY, _DICOM_COLOUR = 16, 14  # beside the stored samples: look-ups, floats, and RGB
_PROFILE = 10  # of 8 bits before and after, and the image that they become
_FLOAT_COPIES = 3  # of pixels as floats: in samples' order, as a tensor, turned
_VP8X_ALPHA, _VP8L_ALPHA = 0x10, 1 << 28  # flags of a WebP's header
_MAX_BLOCKS = 10_000  # of a GIF before its first frame
_MAX_GIF_BLOCKS = 10_000_000  # of all its frames: 2.5 GB
GIF_MAGIC = (b"GIF87a", b"GIF89a")
WEBP_HEADER = 30  # bytes that tell a WebP's size


def count_resize_bytes(width: int, height: int) -> int:
    """Count the bytes for resizing the short side for a network, which is more than the pixels of a small, long strip take."""
    short, long = sorted((width, height))
    return _SHORT_SIDE**2 * long // max(short, 1) * _RESIZED


def count_rule_bytes(width: int, height: int, rule: PixelRule) -> int:
    """Count the bytes for converting decoded pixels by a rule, and for resizing them."""
    size = count_resize_bytes(width, height)
    if rule.floating:
        return width * height * rule.in_chans * _FLOAT_COPIES * 4 + size * rule.in_chans
    return size + (0 if rule.keeps_photographs else width * height * 3)


def count_profile_bytes(width: int, height: int) -> int:
    """Count the bytes for converting decoded pixels by a colour profile."""
    return width * height * _PROFILE


def count_webp_bytes(width: int, height: int, alpha: bool) -> int:
    """Count the bytes for decoding a WebP."""
    return (_ALPHA_WEBP if alpha else _WEBP) * width * height


def read_webp_header(head: bytes) -> tuple[int, int, bool]:
    """Read width, height, and whether there may be transparency, from a WebP's first bytes.

    Pillow's plugin would allocate the canvas, whatever its size. Raises DecodeError for a header that is damaged.
    """
    kind = head[12:16]
    if len(head) >= WEBP_HEADER and kind == b"VP8X":
        flags, width, height = head[20], int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        return width, height, bool(flags & _VP8X_ALPHA)
    if len(head) >= 25 and kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits & _VP8L_ALPHA)
    if len(head) >= WEBP_HEADER and kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF, False
    raise DecodeError("damaged or truncated: the WebP does not begin with its header")


def is_webp(head: bytes) -> bool:
    """Check for a WebP by a file's first 12 bytes."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def read_gif_size(file: BinaryIO) -> tuple[int, int]:
    """Read the size of a GIF's canvas, enlarged to hold its first frame as Pillow's plugin does, which then allocates both.

    Raises DecodeError where too much precedes the frame.
    """
    head = file.read(13)
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << (head[10] & 7) + 1, io.SEEK_CUR)
    for _ in range(_MAX_BLOCKS):
        kind = file.read(1)
        if kind == b",":
            place = [int.from_bytes(file.read(2), "little") for _ in range(4)]
            return max(width, place[0] + place[2]), max(height, place[1] + place[3])
        if kind in (b"", b";"):
            return width, height  # Pillow says what is wrong
        if kind == b"!":
            file.read(1)
            while size := file.read(1):
                if size == b"\0":
                    break
                file.seek(size[0], io.SEEK_CUR)
    raise DecodeError(f"damaged: more than {_MAX_BLOCKS:,} blocks before the GIF's first frame")


def count_gif_frames(file: BinaryIO) -> int:
    """Count the frames of a GIF by its blocks. Raises DecodeError where there are too many of them."""
    head = file.read(13)
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << (head[10] & 7) + 1, io.SEEK_CUR)
    frames = blocks = 0
    while (kind := file.read(1)) in (b",", b"!"):
        if kind == b",":
            frames += 1
            place = file.read(9)
            if len(place) == 9 and place[8] & 0x80:
                file.seek(3 << (place[8] & 7) + 1, io.SEEK_CUR)
        file.read(1)  # the code size, or the kind of an extension
        while (size := file.read(1)) not in (b"", b"\0"):
            file.seek(size[0], io.SEEK_CUR)
            blocks += 1
            if blocks > _MAX_GIF_BLOCKS:
                raise DecodeError(f"damaged: more than {_MAX_GIF_BLOCKS:,} blocks in a GIF")
    return frames


def count_jpeg_bytes(image: Image.Image, scans: int, as_tensor: bool) -> int:
    """Count the bytes for decoding an opened JPEG of so many scans; of several, all coefficients are kept until the last."""
    pixels, layers = image.width * image.height, len(image.getbands())
    coefficients = 2 * layers * (pixels + 16 * (image.width + image.height)) if scans > 1 else 0
    if as_tensor:
        return coefficients + pixels * (3 + 3 + 4)  # turned, or converted to an image
    return coefficients + pixels * (4 if layers == 3 else 8) + pixels * _TURNED


def count_pillow_bytes(image: Image.Image) -> int:
    """Count the bytes for decoding an opened BMP or GIF; those of a WebP are counted before."""
    if image.format == "WEBP":
        return 0
    return image.width * image.height * (4 + _ALPHA if image.has_transparency_data else 6)


def count_png_bytes(width: int, height: int, sample_bytes: int, channels: int) -> int:
    """Count the bytes for decoding a PNG whose pixels have so many channels, each of one or two bytes."""
    alpha = channels in (2, 4)
    return width * height * (channels * sample_bytes**2 + (_ALPHA if alpha else 8))


def count_dicom_bytes(width: int, height: int, samples: int, sample_bytes: int, rule: PixelRule) -> int:
    """Count the bytes for decoding a frame of a DICOM, and converting it by a rule."""
    pixels = width * height
    return pixels * (samples * sample_bytes * 2 + (_DICOM_COLOUR if samples > 1 else _DICOM_GREY)) + count_rule_bytes(
        width, height, rule
    )


def count_segment_bytes(pixels: int, sample_bytes: int, samples: Samples, codec: bool, rule: PixelRule) -> int:
    """Count the bytes for decoding a strip or tile of a TIFF, and converting it by a rule.

    ``sample_bytes``: of a pixel, in all planes; ``codec``: it is a JPEG or JPEG 2000, which keep numbers of more bits for each.
    """
    convert = 4 * rule.in_chans if rule.floating else 3
    if samples.alpha is not None:
        convert += _ALPHA - 4
    elif samples.colours in ("cmyk", "ycbcr"):
        convert += 8
    return pixels * (sample_bytes * (6 if codec else 2) + convert)
