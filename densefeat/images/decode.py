"""Bytes to the RGB pixels that a person would see, or a reason why not."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from densefeat.errors import DecodeError

MAX_PIXELS = 2 * 89_478_485  # twice Pillow's warning limit: 0.5 GB as RGB
MAX_ASPECT = 100  # a longer strip would be blown up to hundreds of megabytes by the resize of its short side


def decode_image(data: bytes) -> Image.Image:
    """RGB, 8 bits, upright by its EXIF tag; an animation's first frame; transparency over white; 16 bits by the high byte.

    Raises DecodeError (stage ``decode``): not an image, truncated, too large, too thin, or with pixels of no agreed white.
    """
    if not data:
        raise DecodeError("the file is empty")
    with readable():
        return rgb_image(Image.open(io.BytesIO(data)))


def rgb_image(image: Image.Image) -> Image.Image:
    """:func:`decode_image` for what Pillow has opened already."""
    with readable():
        check_size(*image.size)
        image.load()
        return to_rgb(upright(image))


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


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation tag says; as it is where the tag cannot be read: the pixels are good all the same."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


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
    """Modes ``I`` and ``I;16*``; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError("32-bit pixels have no agreed white: convert to 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
