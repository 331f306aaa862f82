"""A look at one image file: what is in it, what it says of its values, and what they are."""

import io
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images import dicom, footprint, jpeg, npy, tiff
from densefeat.images.decode import DecodedImage, decode
from densefeat.images.dicom_header import is_dicom
from densefeat.images.guards import MAX_PIXELS, check_image_size, decode_errors
from densefeat.images.memory import MEMORY
from densefeat.images.pillow_images import open_header
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.pixel_statistics import PixelStatistics
from densefeat.images.sampled import HEAD_BYTES, find_reader
from densefeat.images.samples import Samples

_SHOWN = 1, 99  # percentiles


@dataclass(frozen=True)
class BandFacts:
    """A band's name, its smallest and largest value, and two percentiles."""

    name: str
    low: float
    high: float
    percentiles: tuple[float, float]


@dataclass(frozen=True)
class ImageFacts:
    """The facts of an image file.

    Attributes:
        format: Its name for people.
        width, height: As they are stored.
        dtype: Of a sample.
        colours: What samples are: grey, rgb, bands, …
        bits: Bits of a sample that are used; 0 where that is not known.
        declared: Black and white, as the file declares them.
        nodata: The value of missing pixels, as the file declares it.
        profile: A colour profile is embedded.
        several: The file has more images or frames.
        bands: Of the first image.
        decoded: The image by the rule, None where the rule cannot be applied; ``problem`` then says why.
    """

    format: str
    width: int
    height: int
    dtype: str
    colours: str
    bits: int
    declared: tuple[float, float] | None
    nodata: float | None
    profile: bool
    several: bool
    bands: tuple[BandFacts, ...]
    decoded: DecodedImage | None
    problem: str


def inspect_image(data: bytes, rule: PixelRule, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Look at an encoded image, and apply a rule to it; percentiles are those of this image.

    Raises DecodeError where it cannot be decoded.
    """
    if rule.must_be_measured:
        rule = replace(rule, range=f"image:{rule.range}")
    with decode_errors(), MEMORY.hold():
        name, values, samples, several = _read_values(data, max_pixels)
        decoded, problem = None, ""
        try:
            decoded = decode(data, "pillow", max_pixels, rule)
        except (DecodeError, UnknownRange) as error:
            problem = str(error)
        return ImageFacts(
            format=name,
            width=values.shape[1],
            height=values.shape[0],
            dtype=str(values.dtype),
            colours=samples.colours,
            bits=samples.bits,
            declared=samples.declared,
            nodata=samples.nodata,
            profile=samples.icc is not None,
            several=several,
            bands=tuple(_measure_band(values, samples, band) for band in range(values.shape[2])),
            decoded=decoded,
            problem=problem,
        )


def _read_values(data: bytes, max_pixels: int) -> tuple[str, np.ndarray, Samples, bool]:
    """Read a format's name, samples ``(h, w, n)``, what they mean, and whether there are more images."""
    head = data[:HEAD_BYTES]
    if is_dicom(head):
        image = dicom.read_dicom(io.BytesIO(data), max_pixels)
        return "DICOM", *image.decode(0, PixelRule()), image.frames > 1
    if head[:4] in tiff.MAGIC:
        opened = tiff.open_tiff(partial(io.BytesIO, data), "", max_pixels)
        check_image_size(opened.width, opened.height, max_pixels)
        return "TIFF", opened.read_values(), opened.samples, opened.several
    if head.startswith(npy.MAGIC):
        return ".npy", *npy.read_npy(data, max_pixels, PixelRule()), False
    if (read := find_reader(head)) is not None:
        sampled = read(io.BytesIO(data))
        check_image_size(sampled.width, sampled.height, max_pixels)
        size = sampled.count_bytes() + footprint.count_resize_bytes(sampled.width, sampled.height)
        MEMORY.claim(size, f"{sampled.width}×{sampled.height} pixels of {sampled.format}")
        return sampled.format, *sampled.decode(), sampled.several
    picture = decode(data, "pillow", max_pixels)
    name = "JPEG" if head.startswith(jpeg.MAGIC) else str(open_header(io.BytesIO(data), max_pixels).format)
    return name, np.asarray(picture.pixels), Samples("rgb", 8), picture.several


def _measure_band(values: np.ndarray, samples: Samples, band: int) -> BandFacts:
    measured = values[..., band, None]
    if samples.nodata is not None:
        measured = np.where(measured == samples.nodata, np.float32("nan"), measured.astype(np.float32))
    statistics = PixelStatistics()
    statistics.add(measured)
    name = samples.names[band] if band < len(samples.names) else str(band + 1)
    try:
        low, high = statistics.extremes
    except DecodeError:  # nothing but missing pixels
        nothing = float("nan")
        return BandFacts(name, nothing, nothing, (nothing, nothing))
    return BandFacts(name, low, high, (statistics.find_percentile(0, _SHOWN[0]), statistics.find_percentile(0, _SHOWN[1])))


def make_visible(pixels: np.ndarray) -> np.ndarray:
    """Bring channels ``(C, H, W)`` of floats to uint8 RGB ``(H, W, 3)``: the first three, or the first, each between two of its
    percentiles."""
    channels = []
    for channel in pixels[: 3 if len(pixels) >= 3 else 1]:
        low, high = np.percentile(channel, _SHOWN)
        channels.append(np.clip((channel - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8))
    return np.stack(channels * (3 // len(channels)), axis=2)
