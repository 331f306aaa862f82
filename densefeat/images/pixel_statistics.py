"""Percentiles, mean and deviation of the values of many images, of each channel, in one pass and bounded memory."""

from typing import Any

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.pixel_rule import Bounds

_SHIFT = 14  # bits of a float32 that are left out: two values in one bin differ by less than 0.2 %
_BINS = 2 ** (32 - _SHIFT)
_BLOCK = 2**20  # values counted at a time: what is made of each takes 30 bytes


class PixelStatistics:
    """Counts of the values of each channel.

    A value's bin is its float32 without the lowest bits of the mantissa, so that the bins suit numbers of any size; whole
    numbers up to 1024 have bins of their own.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((0, _BINS), np.int64)
        self.sums = np.zeros((0, 2))  # of the values and of their squares
        self.limits = np.zeros((0, 2))

    def add(self, values: np.ndarray) -> None:
        """Count values ``(…, channels)``; NaN is left out. Raises DecodeError for another number of channels than before."""
        channels = values.shape[-1]
        if not len(self.counts):
            self.counts = np.zeros((channels, _BINS), np.int64)
            self.sums = np.zeros((channels, 2))
            self.limits = np.tile([np.inf, -np.inf], (channels, 1))
        if channels != len(self.counts):
            raise DecodeError(f"{channels} channels, but {len(self.counts)} in the images before")
        rows = max(1, _BLOCK * len(values) // max(1, values.size))
        for top in range(0, len(values), rows):
            self._count(values[top : top + rows])

    def _count(self, values: np.ndarray) -> None:
        for channel in range(values.shape[-1]):
            finite = np.asarray(values[..., channel], np.float32).ravel()
            finite = finite[np.isfinite(finite)]
            if len(finite):
                self.counts[channel] += np.bincount(_find_bins(finite), minlength=_BINS)
                exact = finite.astype(np.float64)
                self.sums[channel] += exact.sum(), np.square(exact).sum()
                low, high = self.limits[channel]
                self.limits[channel] = min(low, exact.min()), max(high, exact.max())

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and largest value of all channels. Raises DecodeError where there is none."""
        self._check_counts()
        return float(self.limits[:, 0].min()), float(self.limits[:, 1].max())

    def find_bounds(self, low: float, high: float, together: bool = False) -> Bounds:
        """Find two percentiles of each channel, or of all ``together``, to 0.2 %.

        Raises DecodeError where there are no values, or only one, so that nothing is between the two.
        """
        self._check_counts()
        counts = self.counts.sum(0, keepdims=True) if together else self.counts
        pairs = tuple((_find_percentile(channel, low), _find_percentile(channel, high)) for channel in counts)
        for pair in pairs:
            if pair[0] >= pair[1]:
                raise DecodeError(f"percentiles {low:g} and {high:g} are both {pair[0]:.6g}: there is no contrast between them")
        return pairs

    def find_percentile(self, channel: int, percent: float) -> float:
        """Find a percentile of a channel, to 0.2 %."""
        return _find_percentile(self.counts[channel], percent)

    def find_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel. Raises DecodeError for a channel without two different values."""
        self._check_counts()
        totals = self.counts.sum(1)
        mean = self.sums[:, 0] / totals
        deviation = np.sqrt(np.maximum(self.sums[:, 1] / totals - mean**2, 0))
        if not (deviation > 0).all():
            raise DecodeError(f"channel {int(np.argmin(deviation)) + 1} has the same value everywhere")
        return tuple(mean.tolist()), tuple(deviation.tolist())

    def to_arrays(self) -> dict[str, Any]:
        """Return all that has been counted, as arrays for :meth:`from_arrays`."""
        return {"counts": self.counts, "sums": self.sums, "limits": self.limits}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> "PixelStatistics":
        statistics = cls()
        statistics.counts, statistics.sums, statistics.limits = arrays["counts"], arrays["sums"], arrays["limits"]
        return statistics

    def _check_counts(self) -> None:
        if not len(self.counts) or not self.counts.sum(1).all():
            raise DecodeError("no pixel has data")


def _find_bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each float32 value, in the order of the values: bits of negative numbers grow as these fall."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return (np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> _SHIFT).astype(np.int64)


def _find_percentile(counts: np.ndarray, percent: float) -> float:
    """Return the value at which ``percent`` of the counted values are reached."""
    total = counts.sum()
    rank = min(int(percent / 100 * total), total - 1)
    return _read_bin(int(np.searchsorted(np.cumsum(counts), rank, side="right")))


def _read_bin(number: int) -> float:
    """Return the smallest magnitude of a bin, which for whole numbers is the number itself."""
    bits = np.uint32(number << _SHIFT)
    if bits >> 31:
        return float((bits & np.uint32(0x7FFFFFFF)).view(np.float32))
    return float((~(bits | np.uint32(2**_SHIFT - 1))).view(np.float32))
