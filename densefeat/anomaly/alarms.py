"""P-values, and a threshold with a chosen rate of false alarms, from the scores of held-out good images.

A conformal test (Bates et al., Annals of Statistics 2023, arXiv 2104.08279): it holds for images from the same distribution as
the held-out ones, whatever the network and the score.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from densefeat.errors import UsageError

_CONFIDENCE = 0.95  # of the interval
_ROUNDING = 1e-9
GOOD, ANOMALOUS = "good", "anomalous"


@dataclass(frozen=True)
class Alarms:
    """The scores of held-out good images, float32 ``(n,)``, ascending, and the false-alarm rate that was asked for."""

    held_out: np.ndarray
    rate: float

    @property
    def _rank(self) -> int:
        """How many held-out images, at most, may have a score as high as that of an image that is an alarm, with itself."""
        return math.floor(self.rate * (len(self.held_out) + 1) + _ROUNDING)

    @property
    def threshold(self) -> float:
        """The score above which an image is anomalous: its p-value is then at most the rate."""
        return float(self.held_out[-self._rank])

    @property
    def expected_rate(self) -> float:
        """The expected false-alarm rate, averaged over draws of the held-out images: at most the one asked for."""
        return self._rank / (len(self.held_out) + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the false-alarm rate of this threshold on new good images.

        The rate of a threshold at the k-th largest of n scores has the distribution Beta(k, n + 1 - k), whatever the
        distribution of the scores; with ties it is lower.
        """
        tail = (1 - _CONFIDENCE) / 2
        low, high = beta.ppf([tail, 1 - tail], self._rank, len(self.held_out) + 1 - self._rank)
        return float(low), float(high)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Turn scores ``(m,)`` into p-values: ``(1 + held-out scores at least as high) / (n + 1)``, float64 ``(m,)``.

        At most a share p of good images has a p-value of p or less.
        """
        higher = len(self.held_out) - np.searchsorted(self.held_out, scores.astype(np.float32), side="left")
        return (1 + higher) / (len(self.held_out) + 1)

    def judge(self, scores: np.ndarray) -> np.ndarray:
        """Return for each score ``(m,)`` whether it is anomalous: bool ``(m,)``. NaN is, as its p-value says, too."""
        return ~(scores.astype(np.float32) <= self.held_out[-self._rank])


def check_rate(rate: float) -> None:
    """Raise UsageError for a false-alarm rate that is not above 0 and at most 0.5."""
    if not 0 < rate <= 0.5:
        raise UsageError(f"a false-alarm rate of {100 * rate:g} %: give more than 0 and at most 50 %, such as 1%")


def choose_held_out(count: int, rate: float, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """Choose which good images are held out, bool ``(count,)``: ``share`` of them, or more where the rate needs more.

    Raises UsageError where the rate needs more than half of them.
    """
    needed = math.ceil(1 / rate - _ROUNDING) - 1
    most = count // 2
    if needed > most:
        smallest = f"the smallest rate that {count} can give is {100 / (most + 1):.2g} %" if most else "these are too few"
        raise UsageError(
            f"too few good images ({count}) for a false-alarm rate of {100 * rate:g} %: that takes {needed} held-out images,"
            f" and as many to learn from, {2 * needed} in all; {smallest}"
        )
    chosen = np.random.default_rng(seed).permutation(count)[: max(needed, round(share * count), 1)]
    held_out = np.zeros(count, bool)
    held_out[chosen] = True
    return held_out
