"""Decode images: bytes, files, PIL images and tensors to the RGB pixels that a person would see, or a reason why not.

This is the only file on the way from an input to its pixels that uses torch and torchvision. It imports them in the functions
that handle a tensor, because commands that only list or read an input must not wait seconds for them.
"""

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image, JpegImagePlugin

from densefeat.base import describe_error
from densefeat.errors import DecodeError, UsageError

if TYPE_CHECKING:
    import torch

ImageLike = Union[Image.Image, str, Path, "torch.Tensor"]

_DECODERS = ("torchvision", "pillow")
MAX_PIXELS = 2 * 89_478_485  # twice Pillow's warning limit: 0.5 GB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")  # no others: Pillow would even run PostScript
Image.init()  # fills Image.OPEN here, in one thread
_JPEG_FORMATS = ("JPEG", "MPO")
ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TENSOR_FLIPS = {
    2: (2,),
    3: (1, 2),
    4: (1,),
    5: (),
    6: (2,),
    7: (1, 2),
    8: (1,),
}  # axes; from 5 on of the transposed image
_BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0  # TIFF
_MAX_ASPECT = 100  # resizing the short side of a longer strip would take hundreds of megabytes


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
    check_decoder(decoder)
    with decode_errors():
        image = _open_header(data, max_pixels)
        if decoder == "torchvision" and image.format in _JPEG_FORMATS and image.mode in ("RGB", "L"):
            return _decode_with_torchvision(data, image)
        return _decode_with_pillow(data, image, max_pixels)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image, 8 bits, upright by its EXIF tag.

    Of an animation it is the first frame; transparency is laid over white; of 16 bits the high byte is taken.
    Raises DecodeError (stage ``decode``) for an image that is truncated, too large or too thin, whose pixels have no agreed
    white, and for other data. A JPEG is truncated if it has no end marker, or too few data for its last rows, and a PNG if its
    pixels do not match their checksum. Some damage is not detected: bytes that are missing inside a JPEG, a progressive JPEG
    that was ended early (it is coarse, not grey), and zeros in a WebP, BMP or TIFF file, which have no checksums.
    """
    with decode_errors():
        return _decode_with_pillow(data, _open_header(data, max_pixels), max_pixels)


def _convert_to_upright_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert an image that Pillow has opened as :func:`decode_image` does; whether its file is complete is left to Pillow."""
    with decode_errors():
        check_image_size(*image.size, max_pixels)
        image.load()
        pixels = to_rgb(image)
        turn = _TURNS.get(read_orientation(image))
        return pixels if turn is None else pixels.transpose(turn)


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


def _open_header(data: bytes, max_pixels: int) -> Image.Image:
    """Let Pillow read the header, and check the size before any pixel is read.

    Image.open is not used because it has a limit on the size that is for users to set. GIF, WebP and tiled TIFF still obey it.
    """
    if not data:
        raise DecodeError("the file is empty")
    reason = ""
    for name in FORMATS:
        opener, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(data[:16]) is True:  # else False, or a text that says why
                image: Image.Image = opener(io.BytesIO(data), "")
                check_image_size(*image.size, max_pixels)
                return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how plugins refuse a file
            reason = reason or f" ({error})"
    raise DecodeError(f"not an image that Pillow can read{reason}")


def _decode_with_torchvision(data: bytes, image: Image.Image) -> "torch.Tensor":
    """Decode a JPEG whose header is ``image`` to upright pixels, uint8 ``(3, H, W)``."""
    import torch
    from torchvision.io import decode_jpeg  # torchvision has announced its removal: only the decoder of this name may fail then

    end = find_jpeg_end(data)
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    _check_last_rows(data, end, pixels[:, -8:, -8:].numpy())
    turn = read_orientation(image)
    if turn not in _TENSOR_FLIPS:
        return pixels
    return (pixels if turn < 5 else pixels.transpose(1, 2)).flip(_TENSOR_FLIPS[turn])


def _decode_with_pillow(data: bytes, image: Image.Image, max_pixels: int) -> Image.Image:
    if image.format == "PNG":
        _check_png(data)
    if image.format in _JPEG_FORMATS:
        end = find_jpeg_end(data)
        width, height = image.size
        _check_last_rows(data, end, np.asarray(image.crop((max(0, width - 8), max(0, height - 8), width, height))))
    return _convert_to_upright_rgb(image, max_pixels)


class _QuietThreads(threading.local):
    """The pattern of a warnings filter that matches all messages of threads that are inside :func:`decode_errors`.

    Filters are pickled with tasks for other processes: there this becomes that process's own object. scikit-learn makes filters
    for its workers from ``pattern``, which matches nothing.
    """

    quiet = False
    pattern = "(?!)"

    def match(self, _: str) -> bool:
        return self.quiet

    def __reduce__(self) -> str:
        return "_quiet_threads"


_quiet_threads = _QuietThreads()
_FILTER: Any = ("ignore", _quiet_threads, Warning, None, 0)


@contextmanager
def decode_errors() -> Iterator[None]:
    """Raise errors of all kinds as DecodeError, and silence Pillow's warnings on size and odd metadata in this thread.

    ``warnings.catch_warnings`` would replace the filters of all threads, and two threads that overlap would not restore them.
    """
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    before, _quiet_threads.quiet = _quiet_threads.quiet, True
    try:
        yield
    except (DecodeError, UsageError):
        raise
    except Exception as error:
        reason = describe_error(error)
        reason = re.sub(r"^\w+, \S+:\d+, ", "", reason)  # the place in torchvision's source
        raise DecodeError(f"{type(error).__name__}: {reason}") from error
    finally:
        _quiet_threads.quiet = before


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # without stuffed bytes and restart markers: none is in a scan
_END_OF_IMAGE = b"\xff\xd9"
_MORE_SCAN = bytes(range(1, 255))


def find_jpeg_end(data: bytes) -> int:
    """Find the position of a JPEG's end marker, behind all its segments and scans. Raises DecodeError where there is none.

    Without one Pillow would read the zeros of an interrupted download as pixels. What follows the marker does not matter.
    """
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if marker[0] == _END_OF_IMAGE:
            return marker.start()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise DecodeError("truncated: the JPEG has no end marker")


def _check_last_rows(data: bytes, end: int, corner: np.ndarray) -> None:
    """Raise DecodeError for a JPEG whose scan ends before its pixels do.

    libjpeg fills the missing rows with mid-grey, without an error. But the ``corner`` (bottom right) of a complete image can be
    mid-grey too: then the image stays the same with more data at the end of the scan.
    """
    if corner.min() < 127 or corner.max() > 128:
        return
    longer = data[:end] + _MORE_SCAN + _END_OF_IMAGE
    pixels, filled = (np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg))) for jpeg in (data, longer))
    if not np.array_equal(pixels, filled):
        raise DecodeError("truncated: the JPEG ends before its last rows")


def _check_png(data: bytes) -> None:
    """Raise DecodeError where a chunk of pixels is cut off or does not match its checksum, which Pillow does not check."""
    position = 8
    while (name := data[position + 4 : position + 8]) != b"IEND" and name:
        end = position + 8 + int.from_bytes(data[position : position + 4])
        if name == b"IDAT" and zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise DecodeError("truncated or damaged: the checksum of the PNG's pixels is wrong")
        position = end + 4


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # damaged EXIF fails in many ways
        return 1
    return value if isinstance(value, int) else 1


def check_image_size(width: int, height: int, max_pixels: int) -> None:
    """Raise DecodeError for a size that must not be decoded, before memory for pixels is allocated."""
    if width < 1 or height < 1:
        raise DecodeError(f"{width}×{height} pixels")
    if width * height > max_pixels:
        raise DecodeError(f"{width}×{height} pixels are more than the limit of {max_pixels:,}")
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise DecodeError(f"{width}×{height} pixels: longer than {_MAX_ASPECT} times its width")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to 8-bit RGB."""
    if image.mode.startswith("I"):
        return _convert_deep_grey(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed white: convert to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert_deep_grey(image: Image.Image) -> Image.Image:
    """Convert the modes ``I`` and ``I;16*`` by their 8 highest bits; Pillow's conversion would clip everything above 255."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS_PER_SAMPLE_TAG, (16,)))
    values = np.asarray(image)
    if bits > 16 or values.min() < 0 or values.max() > 65535:
        raise DecodeError("32-bit pixels have no agreed white: convert to 8 or 16 bits")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey).convert("RGB")
