"""Percentiles, means and deviations over many images, against numpy on all of their values."""

import numpy as np
import pytest

from densefeat.errors import DecodeError
from densefeat.images import PixelStatistics

RANDOM = np.random.default_rng(0)
KINDS = {
    "bytes": RANDOM.integers(0, 256, (6, 40, 50, 2)).astype(np.uint8),
    "twelve bits": RANDOM.integers(0, 4096, (6, 40, 50, 2)).astype(np.uint16),
    "signed": RANDOM.integers(-2000, 2000, (6, 40, 50, 2)).astype(np.int16),
    "reflectance": RANDOM.lognormal(-2, 1, (6, 40, 50, 2)).astype(np.float32),
    "elevation": RANDOM.normal(2500, 400, (6, 40, 50, 2)).astype(np.float32),
    "around zero": RANDOM.normal(0, 1e-3, (6, 40, 50, 2)).astype(np.float64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_and_moments(kind: str) -> None:
    images = KINDS[kind]
    statistics = PixelStatistics()
    for image in images:
        statistics.add(image)
    spread = float(images.max()) - float(images.min())
    for low, high in ((1, 99), (0, 100), (2.5, 50)):
        for channel, pair in enumerate(statistics.find_bounds(low, high)):
            expected = np.percentile(images[..., channel].astype(np.float64), (low, high))
            np.testing.assert_allclose(pair, expected, rtol=0.004, atol=spread * 2e-3)
    (joined,) = statistics.find_bounds(1, 99, together=True)
    np.testing.assert_allclose(joined, np.percentile(images.astype(np.float64), (1, 99)), rtol=0.004, atol=spread * 2e-3)
    mean, deviation = statistics.find_moments()
    values = images.astype(np.float64).reshape(-1, 2)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5, atol=spread * 1e-7)
    np.testing.assert_allclose(deviation, values.std(0), rtol=1e-5)
    assert statistics.extremes == pytest.approx((float(images.min()), float(images.max())), rel=1e-6)


def test_whole_numbers_are_exact() -> None:
    statistics = PixelStatistics()
    statistics.add(np.arange(101, dtype=np.uint16).reshape(1, 101, 1))
    assert statistics.find_bounds(1, 99) == ((1.0, 99.0),)


def test_a_pass_that_was_interrupted_goes_on_with_the_same_counts() -> None:
    images = KINDS["reflectance"]
    whole, part = PixelStatistics(), PixelStatistics()
    for image in images:
        whole.add(image)
    for image in images[:3]:
        part.add(image)
    rest = PixelStatistics.from_arrays({name: array.copy() for name, array in part.to_arrays().items()})
    for image in images[3:]:
        rest.add(image)
    assert rest.find_bounds(1, 99) == whole.find_bounds(1, 99)
    assert rest.find_moments() == whole.find_moments()


def test_what_cannot_be_measured() -> None:
    statistics = PixelStatistics()
    with pytest.raises(DecodeError, match="no pixel has data"):
        statistics.find_bounds(1, 99)
    statistics.add(np.full((2, 2, 1), np.nan, np.float32))
    with pytest.raises(DecodeError, match="no pixel has data"):
        statistics.find_moments()
    statistics.add(np.full((2, 2, 1), 5, np.float32))
    with pytest.raises(DecodeError, match="both 5: there is no contrast"):
        statistics.find_bounds(1, 99)
    with pytest.raises(DecodeError, match="channel 1 has the same value everywhere"):
        statistics.find_moments()
    with pytest.raises(DecodeError, match="2 channels, but 1 in the images before"):
        statistics.add(np.zeros((2, 2, 2), np.float32))
