"""A pass over images that measures their values: the percentiles of a range, and mean and deviation of each channel."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from densefeat.base import printable
from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images.decode import DecodedImage
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.pixel_statistics import PixelStatistics
from densefeat.images.stream import Item, name_image, printable_key
from densefeat.images.transforms import Preprocessing

_log = logging.getLogger(__name__)


def measure_values(
    items: Iterator[Any],
    rule: PixelRule,
    statistics: PixelStatistics,
    threads: int,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[int], bool] = lambda _: True,
) -> PixelStatistics:
    """Add the values of whole images, as they are in the files, to ``statistics``; of a known range those within it, 0 to 1.

    Images that cannot be decoded are left out, and counted in a line at the end. ``advance``: called with the number of images
    done since the last call; it returns whether to go on.

    Raises UnknownRange where an image does not say what is black and white, and the rule does not measure that; DecodeError
    where an image has other channels than those before.
    """
    raw = replace(rule, range="raw", bounds=None, in_chans=rule.in_chans if rule.channels is None else len(rule.channels))

    left_out: list[tuple[str, str]] = []  # keys and reasons

    def read(item: Item) -> np.ndarray | None:
        try:
            with MEMORY.hold():
                decoded = item.decode("pillow", max_pixels, raw if rule.must_be_measured else rule)
                if decoded is None:
                    return None
                values = _make_array(decoded)
                if decoded.missing and not rule.must_be_measured:  # a rule makes missing pixels black
                    unruled = item.decode("pillow", max_pixels, raw)
                    assert unruled is not None
                    values = np.where(np.isnan(_make_array(unruled)), np.float32("nan"), values)
                return values
        except DecodeError as error:
            left_out.append((printable(printable_key(item.key)), str(error)))
            return None
        except UnknownRange as error:
            raise name_image(error, item.key) from error

    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(items, threads)):  # no more: all of their pixels are in memory together
            for values in pool.map(read, chunk):
                if values is not None:
                    statistics.add(values)
            if not advance(len(chunk)):
                break
    if left_out:
        text = "%s images cannot be decoded, and are left out of what is measured, such as %s: %s"
        _log.warning(text, f"{len(left_out):,}", *min(left_out))
    return statistics


def _make_array(decoded: DecodedImage) -> np.ndarray:
    """Return pixels as float32 ``(h, w, c)``, 0 to 1 where they have 8 bits."""
    pixels = decoded.pixels
    return pixels.permute(1, 2, 0).numpy() if hasattr(pixels, "permute") else np.asarray(pixels, np.float32) / 255


def complete_preprocessing(
    preprocessing: Preprocessing, fit: bool, measure: Callable[[PixelRule], PixelStatistics], images: str
) -> Preprocessing:
    """Measure what the range leaves open and, to ``fit``, mean and deviation of the channels in that range.

    ``measure``: a pass over all images by a rule; ``images``: what the user named. Raises UsageError where nothing can be
    measured.
    """
    rule = preprocessing.pixels
    try:
        if rule.must_be_measured and rule.percentiles is not None:
            bounds = measure(rule).find_bounds(*rule.percentiles, together=rule.joins_channels)
            rule = replace(rule, bounds=bounds)
            preprocessing = replace(preprocessing, pixels=rule)
        if fit:
            mean, std = measure(rule).find_moments()
            preprocessing = replace(preprocessing, mean=mean, std=std)
    except DecodeError as error:
        raise UsageError(f"images {images!r}: their range cannot be measured: {error}") from error
    return preprocessing
