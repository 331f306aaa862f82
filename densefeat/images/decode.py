"""Decode images: bytes, files, PIL images and tensors to the RGB pixels that a person would see, or a reason why not.

This is the only file on the way from an input to its pixels that uses torch and torchvision. It imports them in the functions
that handle a tensor, because commands that only list or read an input must not wait seconds for them.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images import dicom, footprint, jpeg, npy, pillow_images, tiff
from densefeat.images.converter import Converter, make_converter
from densefeat.images.dicom_header import is_dicom
from densefeat.images.folders import read_file
from densefeat.images.guards import MAX_PIXELS, check_image_size, decode_errors
from densefeat.images.icc import Profile
from densefeat.images.memory import MEMORY
from densefeat.images.orientation import TURNS, find_orientation, read_orientation
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sampled import HEAD_BYTES, SampledImage, find_reader
from densefeat.images.samples import Samples
from densefeat.images.tiff_pages import TiffIndex

if TYPE_CHECKING:
    import torch

ImageLike = Union[Image.Image, str, Path, "torch.Tensor"]

_DECODERS = ("torchvision", "pillow")
_USUAL_RANGE = "uint8 0:255"  # of pictures
_COPIES = 2  # of the encoded image, which decoders make
_WHOLE_TIFF = 7  # bytes a pixel, beside what a strip or tile takes while it is decoded
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
    """An image's pixels by a rule.

    Attributes:
        pixels: An RGB PIL image; a tensor ``(C, H, W)`` on the CPU, uint8 or, of floats, float32; or, while it is cut into
            tiles, such an array ``(H, W, C)``.
        width, height: Of the whole upright image.
        x, y: Where in it a tile lies.
        page: Which of the file's images it is, from 1, where they are told apart.
        several: The file has more images or frames, of which this is the first.
        empty: The file has no pixels for this tile, which is white.
        missing: Some pixels have no data (NaN, or the file's value for that), and are black.
        range: What values became black and white, in words.
        tags: Values of the elements of a DICOM that the user names, in their order.
        bad_profile: The embedded colour profile cannot be used: colours are as they are stored.
    """

    pixels: Any
    width: int
    height: int
    x: int | None = None
    y: int | None = None
    page: int | None = None
    several: bool = False
    empty: bool = False
    missing: bool = False
    range: str = _USUAL_RANGE
    bad_profile: bool = False
    tags: tuple[str | None, ...] = ()


def open_image(image: ImageLike, decoder: str = "torchvision", rule: PixelRule = PHOTOGRAPHS) -> "Image.Image | torch.Tensor":
    """Open an image of any kind as upright pixels: an RGB PIL image, or a tensor ``(C, H, W)`` on the CPU.

    A tensor is uint8 ``(3, H, W)``, or has any channels, and dtype, for the rule to choose from. ``decoder`` is for files, see
    :func:`decode_pixels`. Raises DecodeError for a file that cannot be read or decoded, UsageError for any other type, and
    UnknownRange as :func:`decode` does.
    """
    if isinstance(image, str | Path):
        with MEMORY.hold():
            return decode_pixels(read_file(image), decoder, rule=rule)
    if isinstance(image, Image.Image):
        with decode_errors():
            opened = convert_opened(image, MAX_PIXELS, rule, read_orientation(image))
            return opened.pixels

    import torch

    if not isinstance(image, torch.Tensor):
        raise UsageError(f"a {type(image).__name__} is not an image: pass PIL images, paths or tensors (C, H, W)")
    if image.ndim != 3 or image.numel() == 0:
        raise UsageError(
            f"image tensor of shape {tuple(image.shape)} and {image.dtype}: pass (C, H, W), such as uint8 (3, H, W)"
        )
    if image.dtype == torch.uint8 and image.shape[0] == 3 and rule.keeps_photographs:
        return image.cpu()
    plain = image.detach().cpu()
    values = (plain.float() if plain.dtype == torch.bfloat16 else plain).permute(1, 2, 0).numpy()
    colours = {1: "grey", 3: "rgb"}.get(values.shape[2], "bands")
    bits = 1 if values.dtype == bool else 8 * values.itemsize if values.dtype.kind == "u" and values.itemsize <= 2 else 0
    samples = Samples(colours, bits)
    with decode_errors():
        return _describe_samples(values, samples, rule).pixels


def decode_pixels(
    data: bytes, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS
) -> "Image.Image | torch.Tensor":
    """Decode to the pixels of a rule, upright by the EXIF tag: as :func:`decode_image` does, but JPEGs faster. Safe in threads.

    With ``torchvision`` grey and RGB JPEGs become tensors, uint8 ``(3, H, W)``, channels last in memory; all other images of 8
    bits, and all of them with ``pillow``, become PIL images. Of a rule with floats they are tensors, float32 ``(C, H, W)``.
    Raises DecodeError as :func:`decode_image` does, UsageError for an unknown decoder, and UnknownRange as :func:`decode` does.
    """
    return decode(data, decoder, max_pixels, rule).pixels


def decode(
    data: bytes, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS
) -> DecodedImage:
    """Decode as :func:`decode_pixels` does, and say what else is in the file.

    Raises UnknownRange for an image of which nothing says what is black and white.
    """
    check_decoder(decoder)
    with decode_errors(), MEMORY.hold():
        MEMORY.claim(_COPIES * len(data), f"{len(data):,} bytes")
        if is_dicom(data[:HEAD_BYTES]):  # before TIFF: a DICOM may begin with a TIFF's header, for other readers
            return decode_dicom(data, max_pixels, rule)
        if data[:4] in tiff.MAGIC:
            return decode_tiff(partial(io.BytesIO, data), max_pixels, rule)
        if data.startswith(jpeg.MAGIC):
            return _decode_jpeg(data, decoder, max_pixels, rule)
        if data.startswith(npy.MAGIC):
            return _decode_npy(data, max_pixels, rule)
        if (read := find_reader(data[:HEAD_BYTES])) is not None:
            return _decode_sampled(read(io.BytesIO(data)), max_pixels, rule)
        image = pillow_images.open_header(io.BytesIO(data), max_pixels)
        pillow_images.check_runs(data, image)
        _claim(image, footprint.count_pillow_bytes(image), rule)
        converted = convert_opened(image, max_pixels, rule, find_orientation(image.info))
        return replace(converted, several=pillow_images.is_animated(image))


def _claim(image: Image.Image, size: int, rule: PixelRule) -> Profile:
    """Claim the memory for decoding, converting and resizing an opened image; return its profile.

    Raises DecodeError where there is not as much.
    """
    width, height = image.size
    size += footprint.count_rule_bytes(width, height, rule)
    profile = pillow_images.open_image_profile(image, rule)
    if profile.changes_colours:
        size += footprint.count_profile_bytes(width, height)
    MEMORY.claim(size, f"{width}×{height} pixels of {image.format}")
    return profile


def _describe(pixels: "Image.Image | torch.Tensor", rule: PixelRule, bad_profile: bool) -> DecodedImage:
    """Describe pixels of 8 bits, and take the rule's channels of them."""
    if not rule.keeps_photographs:
        array = np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()
        return replace(_describe_samples(array, Samples("rgb", 8), rule), bad_profile=bad_profile)
    width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[2], pixels.shape[1])
    return DecodedImage(pixels, width, height, bad_profile=bad_profile)


def _describe_samples(values: np.ndarray, samples: Samples, rule: PixelRule, orientation: int = 1) -> DecodedImage:
    """Convert the samples ``(h, w, n)`` of a whole image by a rule, and turn them upright."""
    converter = make_converter(rule, samples, values.dtype, lambda: [values])
    pixels = _wrap_pixels(converter(values))
    pixels = _turn(pixels, orientation) if isinstance(pixels, Image.Image) else _turn_tensor(pixels, orientation)
    width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[2], pixels.shape[1])
    return DecodedImage(
        pixels, width, height, missing=converter.missing, range=describe_range(values.dtype, converter),
        bad_profile=converter.profile.bad,
    )  # fmt: skip


def describe_range(dtype: np.dtype, converter: Converter) -> str:
    """Say which values of an image became black and white; of its own percentiles only of what type they are."""
    if converter.samples.palette is not None:
        return _USUAL_RANGE
    if converter.rule.of_each_image or converter.rule.floating:
        return str(dtype)
    of_picture = None if converter.picture_rule is None else converter.picture_rule.known_bounds
    return f"{dtype} " + ", ".join(f"{low:g}:{high:g}" for low, high in of_picture or converter.bounds)


def _wrap_pixels(pixels: np.ndarray) -> "Image.Image | torch.Tensor":
    """Return converted pixels as uint8 ``(h, w, 3)`` in a PIL image, and others as a float32 tensor ``(C, h, w)``."""
    return Image.fromarray(np.ascontiguousarray(pixels)) if pixels.dtype == np.uint8 else copy_to_tensor(pixels)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image, 8 bits, upright by its EXIF tag, as :data:`densefeat.images.pixel_rule.PHOTOGRAPHS` rules.

    Of an animation it is the first frame, of a TIFF the first page that is no smaller copy; transparency is laid over white; of
    16 bits the high byte is taken. Raises DecodeError (stage ``decode``) for an image that is truncated or too large, and for
    other data; UnknownRange where nothing says what is white. A JPEG is truncated if it has no end marker, or too few data for
    its last rows, and a PNG if its pixels do not match their checksum. Some damage is not detected: bytes that are missing
    inside a JPEG, a progressive JPEG that was ended early (it is coarse, not grey), and zeros in a WebP, BMP or TIFF file,
    which have no checksums.
    """
    pixels = decode(data, "pillow", max_pixels).pixels
    assert isinstance(pixels, Image.Image)
    return pixels


def _decode_jpeg(data: bytes, decoder: str, max_pixels: int, rule: PixelRule) -> DecodedImage:
    header = jpeg.read_jpeg_header(io.BytesIO(data))
    image = header.open()
    width, height = image.size
    check_image_size(width, height, max_pixels)
    end, scans = jpeg.find_jpeg_end(data)
    jpeg.check_scans(scans, width, height, max_pixels)
    as_tensor = decoder == "torchvision" and image.mode in ("RGB", "L")
    profile = _claim(image, footprint.count_jpeg_bytes(image, scans, as_tensor), rule)
    if as_tensor:
        pixels = _decode_with_torchvision(data)
        jpeg.check_last_rows(data, header, end, pixels[:, -8:, -8:].numpy())
        if profile.changes_colours:
            pixels = _convert_tensor(pixels, profile)
        return _describe(_turn_tensor(pixels, find_orientation(image.info)), rule, profile.bad)
    image = header.open(data[header.start :])
    corner = image.crop((max(0, width - 8), max(0, height - 8), width, height))
    jpeg.check_last_rows(data, header, end, np.asarray(corner))
    return convert_opened(image, max_pixels, rule, find_orientation(image.info))


def decode_tiff(
    open: Callable[[], BinaryIO],
    max_pixels: int,
    rule: PixelRule,
    page: int | None = None,
    index: TiffIndex | None = None,
) -> DecodedImage:
    """Decode an image of a TIFF whole. Arguments and errors as of :func:`densefeat.images.tiff.open_tiff`."""
    with decode_errors(), MEMORY.hold():
        image = tiff.open_tiff(open, "", max_pixels, rule, page, index)
        width, height = image.width, image.height
        check_image_size(width, height, max_pixels)
        size = width * height * _WHOLE_TIFF + footprint.count_rule_bytes(width, height, rule)
        MEMORY.claim(size, f"{width}×{height} pixels of TIFF")
        pixels = _wrap_pixels(image.read())
        converter = image.converter
        return DecodedImage(
            pixels, width, height, several=image.several, missing=converter.missing,
            range=describe_range(image.dtype, converter), bad_profile=converter.profile.bad,
        )  # fmt: skip


def _decode_sampled(image: SampledImage, max_pixels: int, rule: PixelRule) -> DecodedImage:
    check_image_size(image.width, image.height, max_pixels)
    size = image.count_bytes() + footprint.count_rule_bytes(image.width, image.height, rule)
    MEMORY.claim(size, f"{image.width}×{image.height} pixels of {image.format}")
    return replace(_describe_samples(*image.decode(), rule, image.orientation), several=image.several)


def decode_dicom(data: bytes, max_pixels: int, rule: PixelRule, page: int = 1) -> DecodedImage:
    """Decode a frame of a DICOM, counted from 1. Raises DecodeError as :func:`decode` does, and where it has no such frame."""
    with decode_errors(), MEMORY.hold():
        image = dicom.read_dicom(io.BytesIO(data), max_pixels)
        if page > image.frames:
            raise DecodeError(f"page {page}: the file has {image.frames:,}")
        return replace(_describe_samples(*image.decode(page - 1, rule), rule), several=image.frames > 1)


def _decode_npy(data: bytes, max_pixels: int, rule: PixelRule) -> DecodedImage:
    values, samples = npy.read_npy(data, max_pixels, rule)
    return _describe_samples(values, samples, rule)


def convert_opened(image: Image.Image, max_pixels: int, rule: PixelRule, orientation: int) -> DecodedImage:
    """Convert an image that Pillow has opened by a rule; whether its file is complete is left to Pillow."""
    check_image_size(*image.size, max_pixels)
    if pillow_images.is_deep(image):
        return _describe_samples(*pillow_images.read_deep_grey(image), rule, orientation)
    image.load()
    profile = pillow_images.open_image_profile(image, rule)
    if profile.changes_colours:
        return _describe_samples(*pillow_images.read_samples(image), rule, orientation)
    return _describe(_turn(pillow_images.convert_to_rgb(image), orientation), rule, profile.bad)


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


def _decode_with_torchvision(data: bytes) -> "torch.Tensor":
    """Decode a JPEG to uint8 ``(3, H, W)``, not turned yet."""
    import torch
    from torchvision.io import decode_jpeg  # torchvision has announced its removal: only the decoder of this name may fail then

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")


def _convert_tensor(pixels: "torch.Tensor", profile: Profile) -> "torch.Tensor":
    """Convert pixels uint8 ``(3, H, W)`` by a profile."""
    import torch

    return torch.from_numpy(profile.convert(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def _turn_tensor(pixels: "torch.Tensor", orientation: int) -> "torch.Tensor":
    """Turn pixels ``(3, H, W)`` upright."""
    if orientation not in _TENSOR_FLIPS:
        return pixels
    return (pixels if orientation < 5 else pixels.transpose(1, 2)).flip(_TENSOR_FLIPS[orientation])
