"""Bytes to the RGB pixels that a person would see, or a reason why not."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from densefeat.errors import DecodeError

MAX_PIXELS = 2 * 89_478_485  # twice Pillow's warning limit: 0.5 GB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")  # no others: Pillow would run PostScript, too
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
BITS_PER_SAMPLE_TAG, PHOTOMETRIC_TAG, WHITE_IS_ZERO = 258, 262, 0  # TIFF
MAX_ASPECT = 100  # a longer strip would be blown up to hundreds of megabytes by the resize of its short side


def decode_image(data: bytes) -> Image.Image:
    """RGB, 8 bits, upright by its EXIF tag; an animation's first frame; transparency over white; 16 bits by the high byte.

    Raises DecodeError (stage ``decode``): not an image, truncated, too large, too thin, or with pixels of no agreed white.
    """
    if not data:
        raise DecodeError("the file is empty")
    with readable():
        return rgb_image(Image.open(io.BytesIO(data), formats=FORMATS))


def rgb_image(image: Image.Image) -> Image.Image:
    """:func:`decode_image` for what Pillow has opened already."""
    with readable():
        check_size(*image.size)
        image.load()
        return upright(image, to_rgb(image))


@contextmanager
def readable() -> Iterator[None]:
    """Pillow's many errors as DecodeError; its remarks on size and odd metadata kept quiet: sizes are checked here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        if "cannot identify image file" in reason:
            reason = "not an image that Pillow can read"
        raise DecodeError(f"{type(error).__name__}: {reason}") from error


def upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """``pixels`` turned as the EXIF orientation tag of ``image`` says; as they are where the tag cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # damaged EXIF fails in many ways
        return pixels
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else pixels.transpose(turn)


def check_size(width: int, height: int) -> None:
    """Raise DecodeError for what must not be decoded, before any pixel is allocated."""
    if width < 1 or height < 1:
        raise DecodeError(f"{width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width}×{height} pixels are more than the limit of {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f"{width}×{height} pixels: longer than {MAX_ASPECT} times its width")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGB."""
    if image.mode.startswith("I"):
        return sixteen_bit_grey(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed white: convert to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def sixteen_bit_grey(image: Image.Image) -> Image.Image:
    """Modes ``I`` and ``I;16*``, by their 8 highest bits; Pillow's own conversion would clip everything above 255."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITS_PER_SAMPLE_TAG, (16,)))
    values = np.asarray(image)
    if bits > 16 or values.min() < 0 or values.max() > 65535:
        raise DecodeError("32-bit pixels have no agreed white: convert to 8 or 16 bits")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey).convert("RGB")
