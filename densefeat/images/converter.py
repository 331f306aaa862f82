"""From an image's samples to the channels that a network reads, by a pixel rule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images.icc import Profile, open_profile
from densefeat.images.pixel_rule import Bounds, PixelRule
from densefeat.images.pixel_statistics import PixelStatistics
from densefeat.images.samples import COLOURS, Samples

Blocks = Callable[[], Iterable[np.ndarray]]

_DARK = 2**14 - 1  # of 16 bits: an image with nothing above it would have less than a quarter of the brightness
_LUMA = np.array([299, 587, 114], np.float32) / 1000  # ITU-R BT.601, as Pillow's grey
_BLOCK = 2**20  # samples converted at a time: the floats between take little memory


@dataclass
class Converter:
    """The conversion of one image's samples, whole or in parts.

    Attributes:
        bounds: Black and white of each channel, or one pair for all.
        truncate: White is 2**n - 1, and the 8 highest of n bits are taken, as image viewers do.
        picture_rule: What becomes of the picture of 8 bits that the samples make; None: it stays.
        missing: Whether a pixel without data was seen.
        profile: What the embedded colour profile does to 8 bits.
    """

    rule: PixelRule
    samples: Samples
    bounds: Bounds
    truncate: bool = False
    picture_rule: PixelRule | None = None
    missing: bool = field(default=False, compare=False)
    profile: Profile = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        samples = self.samples
        measured = not samples.bits or samples.nodata is not None or samples.colours == "bands"
        self.profile = open_profile(None if measured else samples.icc, samples.colours, self.rule)

    @property
    def channels(self) -> int:
        return self.rule.in_chans if self.rule.floating else 3

    @property
    def white(self) -> np.ndarray:
        """A pixel ``(channels,)`` of an area that the file leaves out, as scanners leave out what is empty."""
        return np.full(self.channels, 1, np.float32) if self.rule.floating else np.full(3, 255, np.uint8)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Convert samples ``(h, w, n)`` to uint8 ``(h, w, 3)``, or to float32 ``(h, w, in_chans)``.

        Raises DecodeError for channels that the image does not have, and for values that its file declares impossible.
        """
        height, width, count = values.shape
        rows = max(1, _BLOCK // max(1, width * count))
        if height <= rows:
            return self._convert(values)
        return np.concatenate([self._convert(values[top : top + rows]) for top in range(0, height, rows)])

    def _convert(self, values: np.ndarray) -> np.ndarray:
        if self.profile.changes_colours or (self.samples.needs_conversion and not _takes_samples(self.rule, self.samples)):
            return self._convert_picture(values)
        selected = _select_channels(values, self.samples, self.rule)
        missing = _find_missing(selected, self.rule, self.samples)
        if missing is not None:
            self.missing = True
            selected = np.where(missing, selected.dtype.type(0), selected)
        if self.rule.range == "raw":
            raw = selected.astype(np.float32)
            raw = raw if missing is None else np.where(missing, np.float32("nan"), raw)
            return np.broadcast_to(raw, (*raw.shape[:2], self.channels))
        scaled = self._scale(selected)
        if self.samples.inverted:
            scaled = (1 if self.rule.floating else np.uint8(255)) - scaled
        if missing is not None:
            scaled = np.where(missing, scaled.dtype.type(0), scaled)
        return scaled if self.rule.floating else np.broadcast_to(scaled, (*scaled.shape[:2], 3))

    def _convert_picture(self, values: np.ndarray) -> np.ndarray:
        picture = self.to_picture(values)
        if self.picture_rule is None:
            return picture
        converter = make_converter(self.picture_rule, Samples("rgb", 8), picture.dtype, lambda: [picture])
        pixels = converter(picture)
        self.missing |= converter.missing
        return pixels

    def to_picture(self, values: np.ndarray) -> np.ndarray:
        """Convert colours of any kind, and transparency, to uint8 RGB ``(h, w, 3)``."""
        samples = self.samples
        colours = values[..., : COLOURS[samples.colours]]
        if samples.palette is None:
            colours = self._scale_to_8_bits(colours)
        alpha = None if samples.alpha is None else self._scale_alpha(values[..., samples.alpha, None])
        return samples.to_rgb(colours, alpha, self.profile)

    def _scale_alpha(self, alpha: np.ndarray) -> np.ndarray:
        """Scale transparency to 8 bits: no colour's black is its zero, and floats end at 1."""
        if self.truncate:
            return self._scale_to_8_bits(alpha)
        opaque = 1 if alpha.dtype.kind == "f" else max(1, *(high for _, high in self.bounds))
        return np.rint(np.clip(alpha.astype(np.float32) * (255 / opaque), 0, 255)).astype(np.uint8)

    def _scale(self, values: np.ndarray) -> np.ndarray:
        """Scale values ``(h, w, k)`` so that black becomes 0, and white 255 or 1."""
        if not self.rule.floating:
            return self._scale_to_8_bits(values)
        low, span = self._low_and_span()
        return (values.astype(np.float32) - low) / span

    def _scale_to_8_bits(self, values: np.ndarray) -> np.ndarray:
        """Scale values so that black becomes 0 and white 255."""
        (low, high), *others = self.bounds
        if values.dtype == np.uint8 and (low, high) == (0, 255) and not others:
            return values
        if self.truncate:
            bits = int(high).bit_length()
            if (brightest := int(values.max(initial=0))) > high:
                raise DecodeError(f"samples of {brightest:,}, but the file declares that they have {bits} bits")
            if bits > 8:
                return (values >> (bits - 8)).astype(np.uint8)
            return np.rint(values * (255 / high)).astype(np.uint8)
        lows, spans = self._low_and_span()
        return np.rint(np.clip((values.astype(np.float32) - lows) * (255 / spans), 0, 255)).astype(np.uint8)

    def _low_and_span(self) -> tuple[np.ndarray, np.ndarray]:
        bounds = np.array(self.bounds, np.float64)
        return bounds[:, 0].astype(np.float32), (bounds[:, 1] - bounds[:, 0]).astype(np.float32)


def make_converter(rule: PixelRule, samples: Samples, dtype: np.dtype, blocks: Blocks) -> Converter:
    """Decide what is black and white in an image.

    ``blocks``: reads the samples ``(h, w, n)`` of the whole image, in parts; it is called only where they decide.

    Raises:
        UnknownRange: Nothing says what is black and white. UsageError: the range was not measured yet.
        DecodeError: Complex numbers; or an image without a pixel that has data, where its own values decide.
    """
    if dtype.kind not in "buif":
        what = "complex numbers" if dtype.kind == "c" else f"values of type {dtype}"
        raise DecodeError(f"{what} are no brightness: write their magnitude, or parts, as bands of floats")
    if _is_picture(rule, samples):
        return _make_picture_converter(rule, samples, dtype, blocks)
    converter = _make_samples_converter(rule, samples, dtype, blocks)
    if rule.keeps_photographs or not samples.needs_conversion:
        return converter
    return replace(converter, picture_rule=replace(rule, range="dtype", bounds=None, nodata=None))


def _is_picture(rule: PixelRule, samples: Samples) -> bool:
    """Tell whether black and white are values of the picture that the samples make, as of a photograph, not of the samples."""
    if samples.palette is not None:
        return True
    if (
        not samples.needs_conversion
        or _takes_samples(rule, samples)
        or (rule.nodata is None and rule.range in ("auto", "dtype"))
    ):
        return False
    return samples.fills_8_bits or (
        samples.colours in ("ycbcr", "cmyk") and (rule.percentiles is not None or rule.range == "raw")
    )


def _make_picture_converter(rule: PixelRule, samples: Samples, dtype: np.dtype, blocks: Blocks) -> Converter:
    converter = _make_automatic_converter(rule, samples, dtype, blocks)
    if rule.keeps_photographs:
        return converter
    picture_rule = rule
    if rule.of_each_image:
        picture = Samples("rgb", 8)
        bounds = _measure_percentiles(rule, picture, lambda: map(converter.to_picture, blocks()))
        picture_rule = replace(rule, range=rule.range.removeprefix("image:"), bounds=bounds)
    return replace(converter, picture_rule=picture_rule)


def _make_samples_converter(rule: PixelRule, samples: Samples, dtype: np.dtype, blocks: Blocks) -> Converter:
    if rule.known_bounds is not None:
        return Converter(rule, samples, rule.known_bounds)
    if rule.must_be_measured:
        raise UsageError(f"range {rule.range!r} is measured on all images of a job: give LOW:HIGH, or image:{rule.range}")
    if rule.percentiles is not None:
        return Converter(rule, samples, _measure_percentiles(rule, samples, blocks))
    if rule.range == "raw":
        return Converter(rule, samples, ((0, 1),))
    if rule.range == "dtype":
        low, high = _find_dtype_range(samples, dtype)
        return Converter(rule, samples, ((low, high),), truncate=low == 0 and dtype.kind in "bu")
    return _make_automatic_converter(rule, samples, dtype, blocks)


def _make_automatic_converter(rule: PixelRule, samples: Samples, dtype: np.dtype, blocks: Blocks) -> Converter:
    if samples.declared is not None:
        low, high = samples.declared
        whole_bits = low == 0 and dtype.kind in "bu" and high >= 1 and (int(high) + 1).bit_count() == 1 and high == int(high)
        return Converter(rule, samples, ((low, high),), truncate=whole_bits)
    if not samples.bits:
        extremes = _count_values(rule, samples, blocks).extremes
        if samples.limits is not None and _fills(extremes, samples.limits):
            return Converter(rule, samples, (samples.limits,))
        raise UnknownRange(_describe_unknown(extremes, dtype))
    if samples.may_be_shallow:
        brightest = 0
        for block in blocks():
            brightest = max(brightest, samples.find_brightest(block))
            if brightest > _DARK:
                break
        if 0 < brightest <= _DARK:
            raise UnknownRange(
                f"16-bit samples of at most {brightest:,}, nearly black: of fewer bits stored in 16, or no brightness at all."
                f" Say what is white, such as --range 0:{2 ** brightest.bit_length() - 1}, --range p1:p99 or --range dtype"
            )
    return Converter(rule, samples, ((0, 2**samples.bits - 1),), truncate=True)


def _fills(extremes: tuple[float, float], limits: tuple[float, float]) -> bool:
    """Tell whether the values of an image are more than a quarter of those that there can be."""
    return 4 * (extremes[1] - extremes[0]) > limits[1] - limits[0]


def _count_values(rule: PixelRule, samples: Samples, blocks: Blocks) -> PixelStatistics:
    """Count the values of a range's channels in the whole image."""
    statistics = PixelStatistics()
    for block in blocks():
        statistics.add(_take_values(block, samples, rule))
    return statistics


def _describe_unknown(extremes: tuple[float, float], dtype: np.dtype) -> str:
    kinds = {"f": "floating-point", "i": "signed", "u": "unsigned"}
    low, high = extremes
    return (
        f"{kinds[dtype.kind]} {8 * dtype.itemsize}-bit values from {low:.6g} to {high:.6g}, and the file does not say which are"
        " black and white: give --range LOW:HIGH, or percentiles such as --range p1:p99"
    )


def _measure_percentiles(rule: PixelRule, samples: Samples, blocks: Blocks) -> Bounds:
    assert rule.percentiles is not None
    return _count_values(rule, samples, blocks).find_bounds(*rule.percentiles, together=rule.joins_channels)


def _take_values(values: np.ndarray, samples: Samples, rule: PixelRule) -> np.ndarray:
    """Take the values of a range's channels ``(h, w, k)``, float32, NaN where there is no data."""
    selected = (
        _select_channels(values, samples, rule) if _takes_samples(rule, samples) else values[..., : COLOURS[samples.colours]]
    )
    missing = _find_missing(selected, rule, samples)
    return selected if missing is None else np.where(missing, np.float32("nan"), selected.astype(np.float32))


def _find_dtype_range(samples: Samples, dtype: np.dtype) -> tuple[float, float]:
    if samples.limits is not None:
        return samples.limits
    if dtype.kind == "f":
        return 0, 1
    if samples.bits and samples.bits % 8:  # samples of 1, 4 or 12 bits, whatever they are unpacked to
        return 0, 2**samples.bits - 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _find_missing(values: np.ndarray, rule: PixelRule, samples: Samples) -> np.ndarray | None:
    """Mark pixels without data, bool ``(h, w, k)``; None where there are none."""
    nodata = samples.nodata if rule.nodata is None else rule.nodata
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else None
    if nodata is not None:
        equal = values == np.float32(nodata) if values.dtype == np.float32 else values == nodata
        missing = equal if missing is None else missing | equal
    return missing if missing is not None and missing.any() else None


def _takes_samples(rule: PixelRule, samples: Samples) -> bool:
    """Tell whether channels are the samples as they are stored, and not those of the picture that they make."""
    if samples.colours in ("palette", "ycbcr", "cmyk"):
        return False
    return samples.alpha is None or rule.channels is not None or (rule.range == "raw" and not samples.fills_8_bits)


def _select_channels(values: np.ndarray, samples: Samples, rule: PixelRule) -> np.ndarray:
    """Select the channels of a rule: ``(h, w, k)``, k 1 or the number that the network reads.

    Raises DecodeError where the image does not have them, or where it takes a word from the user which they are.
    """
    count = values.shape[2]
    if rule.channels is not None:
        return values[..., [_find_channel(name, count, samples.names) for name in rule.channels]]
    colours = COLOURS[samples.colours]
    if samples.alpha is not None:  # raw colours, whatever their transparency
        values, count = values[..., :colours], colours
    if rule.in_chans == 3:
        if colours in (1, 3) and (colours == 3 or count == 1):
            return values[..., :colours]
    elif rule.in_chans == count:
        return values
    elif rule.in_chans == 1 and colours == 3:
        return (values[..., :3].astype(np.float32) @ _LUMA)[..., None]
    elif rule.in_chans == 1 and colours == 1:
        return values[..., :1]
    names = f" ({', '.join(samples.names[:20])})" if samples.names else ""
    raise DecodeError(
        f"{count} bands{names} without a word on which of them the network's {rule.in_chans} channels are: choose with"
        " --channels, such as --channels " + ",".join(map(str, range(min(count, rule.in_chans), 0, -1)))
    )


def _find_channel(name: str, count: int, names: tuple[str, ...]) -> int:
    if name.isascii() and name.isdigit():
        number = int(name)
    else:
        known = [known.casefold() for known in names[:count]]
        number = known.index(name.casefold()) + 1 if name.casefold() in known else 0
    if not 1 <= number <= count:
        known_names = f", called {', '.join(names[:20])}" if names else " without names"
        raise DecodeError(f"channel {name}: the image has {count}{known_names}")
    return number - 1
