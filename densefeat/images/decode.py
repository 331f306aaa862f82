"""Decode images: bytes, files, PIL images and tensors to the RGB pixels that a person would see, or a reason why not.

This is the only file on the way from an input to its pixels that uses torch and torchvision. It imports them in the functions
that handle a tensor, because commands that only list or read an input must not wait seconds for them.
"""

import io
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union

import numpy as np
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images import png, tiff
from densefeat.images.guards import MAX_PIXELS, check_image_size, decode_errors
from densefeat.images.jpeg import check_last_rows, find_jpeg_end
from densefeat.images.orientation import TURNS, read_orientation
from densefeat.images.samples import Samples, check_brightness, lay_over_white

if TYPE_CHECKING:
    import torch

ImageLike = Union[Image.Image, str, Path, "torch.Tensor"]

_DECODERS = ("torchvision", "pillow")
FORMATS = ("JPEG", "WEBP", "BMP", "DIB", "GIF")  # of Pillow's, beside PNG and TIFF: no others, it would even run PostScript
Image.init()  # fills Image.OPEN here, in one thread
READ_FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF"
_JPEG_FORMATS = ("JPEG", "MPO")
_OTHER_FORMATS = {  # by how a file begins, to say which it is
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
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
    b"\0\0\x01\0": "ICO",
    b"icns": "ICNS",
    **{b"P%d" % number: "PPM" for number in range(1, 8)},
}
_BRANDS = {  # of ISO media files
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
}
_BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0  # TIFF
_TENSOR_FLIPS = {
    2: (2,),
    3: (1, 2),
    4: (1,),
    5: (),
    6: (2,),
    7: (1, 2),
    8: (1,),
}  # axes; from 5 on of the transposed image


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image's RGB pixels: a PIL image, or a uint8 tensor ``(3, H, W)`` on the CPU.

    Attributes:
        width, height: Of the whole upright image.
        x, y: Where in it a tile lies.
        several: The file has more images or frames, of which this is the first.
    """

    pixels: "Image.Image | torch.Tensor"
    width: int
    height: int
    x: int | None = None
    y: int | None = None
    several: bool = False


def open_image(image: ImageLike, decoder: str = "torchvision") -> "Image.Image | torch.Tensor":
    """Open an image of any kind as upright RGB pixels: a PIL image, or a uint8 tensor ``(3, H, W)`` on the CPU.

    ``decoder`` is for files, see :func:`decode_pixels`. Raises DecodeError for a file that cannot be read or decoded, and
    UsageError for a tensor that is not uint8 ``(3, H, W)`` and for any other type.
    """
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DecodeError(error.strerror or type(error).__name__, "read") from error
        return decode_pixels(data, decoder)
    if isinstance(image, Image.Image):
        return _convert_to_upright_rgb(image)

    import torch

    if not isinstance(image, torch.Tensor):
        raise UsageError(f"a {type(image).__name__} is not an image: pass PIL images, paths or uint8 tensors (3, H, W)")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise UsageError(f"image tensor of shape {tuple(image.shape)} and {image.dtype}: pass uint8 (3, H, W)")
    return image.cpu()


def decode_pixels(data: bytes, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> "Image.Image | torch.Tensor":
    """Decode to RGB pixels, 8 bits, upright by the EXIF tag: as :func:`decode_image` does, but JPEGs faster. Safe in threads.

    With ``torchvision`` grey and RGB JPEGs become tensors, uint8 ``(3, H, W)``, channels last in memory; all other images, and
    all images with ``pillow``, become PIL images. Raises DecodeError as :func:`decode_image` does, and UsageError for an
    unknown decoder.
    """
    return decode(data, decoder, max_pixels).pixels


def decode(data: bytes, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode as :func:`decode_pixels` does, and say what else is in the file."""
    check_decoder(decoder)
    with decode_errors():
        if data[:4] in tiff.MAGIC:
            return _decode_tiff(data, max_pixels)
        if data.startswith(png.MAGIC):
            return _decode_png(data, max_pixels)
        image = open_header(io.BytesIO(data), max_pixels)
        several = is_animated(image)
        if image.format in _JPEG_FORMATS and decoder == "torchvision" and image.mode in ("RGB", "L"):
            return _describe(_decode_with_torchvision(data, image))
        if image.format in _JPEG_FORMATS:
            _check_jpeg(data, image)
        return _describe(_convert_to_upright_rgb(image, max_pixels), several)


def _describe(pixels: "Image.Image | torch.Tensor", several: bool = False) -> DecodedImage:
    width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[2], pixels.shape[1])
    return DecodedImage(pixels, width, height, several=several)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image, 8 bits, upright by its EXIF tag.

    Of an animation it is the first frame, of a TIFF the first page that is no smaller copy; transparency is laid over white; of
    16 bits the high byte is taken. Raises DecodeError (stage ``decode``) for an image that is truncated or too large, whose
    pixels have no agreed white, and for other data. A JPEG is truncated if it has no end marker, or too few data for its last
    rows, and a PNG if its pixels do not match their checksum. Some damage is not detected: bytes that are missing inside a
    JPEG, a progressive JPEG that was ended early (it is coarse, not grey), and zeros in a WebP, BMP or TIFF file, which have no
    checksums.
    """
    pixels = decode(data, "pillow", max_pixels).pixels
    assert isinstance(pixels, Image.Image)
    return pixels


def _decode_tiff(data: bytes, max_pixels: int) -> DecodedImage:
    image = tiff.open_tiff(partial(io.BytesIO, data), "", max_pixels)
    check_image_size(image.width, image.height, max_pixels)
    return _describe(Image.fromarray(image.read()), image.several)


def _decode_png(data: bytes, max_pixels: int) -> DecodedImage:
    image = png.read_png(io.BytesIO(data))
    check_image_size(image.width, image.height, max_pixels)
    return _describe(_turn(Image.fromarray(image.decode()), image.orientation), image.animated)


def _convert_to_upright_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert an image that Pillow has opened as :func:`decode_image` does; whether its file is complete is left to Pillow."""
    with decode_errors():
        check_image_size(*image.size, max_pixels)
        image.load()
        return _turn(_to_rgb(image), read_orientation(image))


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def copy_to_tensor(pixels: np.ndarray) -> "torch.Tensor":
    """Copy RGB pixels, uint8 ``(H, W, 3)``, to a contiguous tensor ``(3, H, W)``."""
    import torch

    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def check_decoder(decoder: str) -> None:
    """Raise UsageError for a decoder that does not exist, or is not installed."""
    if decoder not in _DECODERS:
        raise UsageError(f"decoder {decoder!r}: choose one of {', '.join(_DECODERS)}")
    if decoder == "torchvision":
        try:
            from torchvision.io import decode_jpeg  # noqa: F401
        except ImportError as error:
            raise UsageError("decoder 'torchvision': the installed torchvision decodes no JPEG, choose pillow") from error


def open_header(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Let Pillow read the header of an image that is neither PNG nor TIFF, and check the size before any pixel is read.

    Image.open is not used because it has a limit on the size that is for users to set. GIF and WebP still obey it.
    """
    head = file.read(16)
    if not head:
        raise DecodeError("the file is empty")
    reason = ""
    for name in FORMATS:
        opener, accepts = Image.OPEN[name]
        file.seek(0)
        try:
            if accepts is None or accepts(head) is True:  # else False, or a text that says why
                image: Image.Image = opener(file, "")
                check_image_size(*image.size, max_pixels)
                return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how plugins refuse a file
            reason = reason or f" ({error})"
    other = _name_other_format(head)
    if other is not None:
        raise DecodeError(f"{other} is not among the formats read: {READ_FORMATS}")
    raise DecodeError(f"not an image of a format that is read, {READ_FORMATS}{reason}")


def is_animated(image: Image.Image) -> bool:
    """Check whether an opened GIF or WebP has more frames than one; the second image of a JPEG is a phone's auxiliary one."""
    return image.format in ("GIF", "WEBP") and getattr(image, "is_animated", False)


def _name_other_format(head: bytes) -> str | None:
    """Name a format that is not read by its first bytes, if they are known."""
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _BRANDS[head[8:12]]
    return next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)


def _decode_with_torchvision(data: bytes, image: Image.Image) -> "torch.Tensor":
    """Decode a JPEG whose header is ``image`` to upright pixels, uint8 ``(3, H, W)``."""
    import torch
    from torchvision.io import decode_jpeg  # torchvision has announced its removal: only the decoder of this name may fail then

    end = find_jpeg_end(data)
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    check_last_rows(data, end, pixels[:, -8:, -8:].numpy())
    turn = read_orientation(image)
    if turn not in _TENSOR_FLIPS:
        return pixels
    return (pixels if turn < 5 else pixels.transpose(1, 2)).flip(_TENSOR_FLIPS[turn])


def _check_jpeg(data: bytes, image: Image.Image) -> None:
    """Raise DecodeError for a JPEG of which a part is missing."""
    end = find_jpeg_end(data)
    width, height = image.size
    check_last_rows(data, end, np.asarray(image.crop((max(0, width - 8), max(0, height - 8), width, height))))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to 8-bit RGB, transparency over white."""
    if image.mode.startswith("I"):
        return _convert_deep_grey(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed white: convert to 8 or 16 bits")
    if image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # programs that reserve the fourth byte and leave it at zero
    if image.has_transparency_data:
        return Image.fromarray(lay_over_white(image.convert("RGBA")))
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert_deep_grey(image: Image.Image) -> Image.Image:
    """Convert the modes ``I`` and ``I;16*`` by their 8 highest bits; Pillow's conversion would clip everything above 255."""
    values = np.atleast_3d(np.asarray(image))
    tags = getattr(image, "tag_v2", {})  # of a TIFF that the user has opened
    bits = max(tags.get(_BITS_PER_SAMPLE_TAG, (16,)))
    if bits > 16 or values.min() < 0 or values.max() > 65535:
        raise DecodeError("32-bit pixels have no agreed white: convert to 8 or 16 bits")
    samples = Samples("grey", bits, inverted=tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO)
    if samples.may_be_shallow:
        check_brightness(samples.find_brightest(values))
    return Image.fromarray(samples.to_rgb(values))
