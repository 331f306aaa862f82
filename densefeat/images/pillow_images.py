"""Images that Pillow opens: their headers, looked at before anything is allocated, and their pixels."""

import os
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images import footprint, jpeg
from densefeat.images.guards import check_image_size
from densefeat.images.icc import Profile, open_profile
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import COLOURS, Samples, lay_over_white

_FORMATS = ("WEBP", "BMP", "DIB", "GIF")  # of Pillow's, beside JPEG: no others, it would even run PostScript
READ_FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, JPEG 2000, AVIF, HEIC, PBM, PGM, PPM, PAM, DICOM, .npy"
Image.init()  # fills Image.OPEN here, in one thread
if "PILLOW_BLOCK_SIZE" not in os.environ:
    # Pillow allocates images in blocks of 16 MB, which glibc keeps for each thread after they are freed; larger ones it returns
    Image.core.set_block_size(2**26)
_BMP_RUNS = (1, 2)  # compressions
_MAX_RUN_PIXELS = 2**24
_OTHER_FORMATS = {  # by how a file begins, to say which it is
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop's PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"SIMPLE  =": "FITS",
    b"\x89HDF": "HDF5",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"DDS ": "DDS",
    b"\0\0\01\0": "ICO",
    b"icns": "ICNS",
    b"PF": "PFM",
    b"Pf": "PFM",
}
_BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0  # TIFF


def open_header(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Open an image of a format that Pillow reads by its header, and check the size before any pixel is read.

    A JPEG is opened without pixels. Image.open is not used because it has a limit on the size that is for users to set. GIF
    and WebP still obey it. Their plugins already allocate pixels here, which are claimed until the block of ``MEMORY.hold``
    around this ends: all that decoding a WebP takes.
    """
    head = file.read(footprint.WEBP_HEADER)
    if not head:
        raise DecodeError("the file is empty")
    if head.startswith(jpeg.MAGIC):
        image: Image.Image = jpeg.read_jpeg_header(file).open()
        check_image_size(*image.size, max_pixels)
        return image
    _check_header(file, head, max_pixels)
    reason = ""
    for name in _FORMATS:
        opener, accepts = Image.OPEN[name]
        file.seek(0)
        try:
            if accepts is None or accepts(head) is True:  # else False, or a text that says why
                image = opener(file, "")
                check_image_size(*image.size, max_pixels)
                return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how plugins refuse a file
            reason = reason or f" ({error})"
    other = _name_other_format(head)
    if other is not None:
        raise DecodeError(f"{other} is not among the formats read: {READ_FORMATS}")
    raise DecodeError(f"not an image of a format that is read, {READ_FORMATS}{reason}")


def _check_header(file: BinaryIO, head: bytes, max_pixels: int) -> None:
    """Raise DecodeError for a header that Pillow's plugins would allocate too much for, or spend too long on."""
    file.seek(0)
    if footprint.is_webp(head):
        width, height, alpha = footprint.read_webp_header(head)
        check_image_size(width, height, max_pixels)
        size = footprint.count_webp_bytes(width, height, alpha) + footprint.count_resize_bytes(width, height)
        MEMORY.claim(size, f"{width}×{height} pixels of WEBP")
    elif head.startswith(footprint.GIF_MAGIC):
        width, height = footprint.read_gif_size(file)
        check_image_size(width, height, max_pixels)
        MEMORY.claim(width * height, f"{width}×{height} pixels of GIF")


def _name_other_format(head: bytes) -> str | None:
    """Name a format that is not read by its first bytes, if they are known."""
    return next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)


def is_animated(image: Image.Image) -> bool:
    """Check whether an opened GIF or WebP has more frames than one; the second image of a JPEG is a phone's auxiliary one."""
    return image.format in ("GIF", "WEBP") and getattr(image, "is_animated", False)


def check_runs(data: bytes, image: Image.Image) -> None:
    """Raise DecodeError for a BMP of so many runs, or pixels in runs, that it takes minutes: Pillow reads each in Python."""
    in_runs = image.format in ("BMP", "DIB") and image.info.get("compression") in _BMP_RUNS
    if in_runs and max(image.width * image.height, len(data)) > _MAX_RUN_PIXELS:
        raise DecodeError(
            f"{image.width}×{image.height} pixels of a BMP compressed in runs, {len(data):,} bytes: more than the limit of"
            f" {_MAX_RUN_PIXELS:,} pixels or bytes; convert it to PNG"
        )


def is_deep(image: Image.Image) -> bool:
    """Check for one of the modes ``I``, ``I;16*`` and ``F``."""
    return image.mode == "F" or image.mode.startswith("I")


def open_image_profile(image: Image.Image, rule: PixelRule) -> Profile:
    """Look up what the profile of an opened image of 8 bits does to its colours."""
    icc = image.info.get("icc_profile")
    return open_profile(icc if isinstance(icc, bytes) else None, _find_colours(image), rule)


def _find_colours(image: Image.Image) -> str:
    return {"1": "grey", "L": "grey", "LA": "grey", "CMYK": "cmyk"}.get(image.mode, "rgb")


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes of 8 bits to RGB, transparency over white."""
    if image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # programs that reserve the fourth byte and leave it at zero
    if image.has_transparency_data:
        return Image.fromarray(lay_over_white(image.convert("RGBA")))
    return image if image.mode == "RGB" else image.convert("RGB")


def read_samples(image: Image.Image) -> tuple[np.ndarray, Samples]:
    """Read an opened image of 8 bits with a colour profile."""
    colours, alpha = _find_colours(image), image.has_transparency_data
    mode = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}[colours] + ("A" if alpha else "")
    samples = Samples(colours, 8, alpha=COLOURS[colours] if alpha else None, icc=image.info["icc_profile"])
    return np.atleast_3d(np.asarray(image if image.mode == mode else image.convert(mode))), samples


def read_deep_grey(image: Image.Image) -> tuple[np.ndarray, Samples]:
    """Read the modes ``I``, ``I;16*`` and ``F``; Pillow's own conversion would clip everything above 255."""
    values = np.atleast_3d(np.asarray(image))
    tags = getattr(image, "tag_v2", {})  # of a TIFF that the user has opened
    bits = max(tags.get(_BITS_PER_SAMPLE_TAG, (16,)))
    if image.mode == "F" or bits > 16 or values.min() < 0 or values.max() > 65535:
        return values, Samples("grey", 0, inverted=tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO)
    icc = image.info.get("icc_profile")
    return values.astype(np.uint16), Samples("grey", bits, inverted=tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO, icc=icc)
