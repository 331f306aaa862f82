"""The pixel rule: which channels of an image a network reads, and which of its values are black and white.

An image is samples ``(h, w, n)`` of any dtype, with what its file says of them (:class:`densefeat.images.samples.Samples`).
Networks read three channels of 8 bits, as photographs have, or ``in_chans`` channels of floats. The step between is chosen once
for a job, and is recorded as part of the preprocessing.
"""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from densefeat.base import is_number, shorten_text
from densefeat.errors import UsageError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOUNDS = re.compile(rf"({_NUMBER}):({_NUMBER})")
_PERCENTILES = re.compile(rf"(image:)?p({_NUMBER}):p({_NUMBER})")
_WORDS = ("auto", "dtype", "raw")
_PROFILES = ("convert", "ignore")
_MAX_CHANNELS = 1024

Bounds = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PixelRule:
    """The way from an image's samples to the channels that a network reads.

    Args:
        range: Which values are black and white. ``"auto"``: as the file declares, else the whole range of 8 or 16 bits; where
            neither can be, :class:`densefeat.errors.UnknownRange` is raised. ``"LOW:HIGH"``: these, for every image.
            ``"pA:pB"``: percentiles over all images, of each channel that is chosen, or of the colours of a picture together;
            ``bounds`` has their values once they are measured. ``"image:pA:pB"``: percentiles of each image, by which
            differences in brightness between images are lost. ``"dtype"``: the whole range of whole numbers, 0 to 1 of
            floats. ``"raw"``: floats, the values as they are in the file.
        channels: Numbers from 1, or the names that the file has for its bands. None: the colours of a picture, or all bands
            where there are as many as the network reads.
        in_chans: How many channels the network reads. Three are uint8, and values outside of the range become black or white;
            others are float32, 0 to 1 in the range, and go on beyond it.
        nodata: A value that stands for a missing pixel, beside NaN and infinity and what the file declares. Missing pixels are
            black.
        icc: ``"convert"``: colours become sRGB by the profile that is embedded in a file; ``"ignore"``: they stay. A profile
            says what a picture looks like, so it counts where the network is shown the picture: in three channels, in the
            range that the file has. Bands, ranges and missing values that are chosen here, and channels of any other number,
            are measurements, which stay as they are stored; and so do signed numbers, floats, and more than 16 bits.
        bounds: Values of ``"pA:pB"``: one pair for all channels, or one for each.

    Raises:
        UsageError: A value that has no meaning.
    """

    range: str = "auto"
    channels: tuple[str, ...] | None = None
    in_chans: int = 3
    nodata: float | None = None
    icc: str = "convert"
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.range, str) or not (
            self.range in _WORDS or self._has_good_bounds() or self._has_good_percentiles()
        ):
            raise UsageError(
                f"range {shorten_text(repr(self.range))}: give auto, dtype, LOW:HIGH such as 0:4095, or percentiles such as"
                " p1:p99 (of all images) or image:p1:p99 (of each)"
            )
        if type(self.in_chans) is not int or not 0 < self.in_chans <= _MAX_CHANNELS:
            raise UsageError(f"{shorten_text(repr(self.in_chans))} input channels: give 1 to {_MAX_CHANNELS}")
        self._check_names()
        if self.nodata is not None and not is_number(self.nodata):
            raise UsageError(f"nodata {shorten_text(repr(self.nodata))}: give a number")
        if self.icc not in _PROFILES:
            raise UsageError(f"icc {shorten_text(repr(self.icc))}: choose one of {', '.join(_PROFILES)}")
        if self.bounds is not None and not (self.percentiles and not self.of_each_image and _are_bounds(self.bounds)):
            raise UsageError(f"bounds {shorten_text(repr(self.bounds))} of range {self.range!r} have no meaning")

    def _has_good_bounds(self) -> bool:
        match = _BOUNDS.fullmatch(self.range)
        return match is not None and _are_bounds(((float(match[1]), float(match[2])),))

    def _has_good_percentiles(self) -> bool:
        return self.percentiles is not None and 0 <= self.percentiles[0] < self.percentiles[1] <= 100

    def _check_names(self) -> None:
        if self.channels is None:
            return
        if not isinstance(self.channels, tuple) or not all(isinstance(name, str) and name for name in self.channels):
            raise UsageError(f"channels {shorten_text(repr(self.channels))}: give numbers from 1 or names, such as 4,3,2")
        if "0" in self.channels:
            raise UsageError(f"channels {','.join(self.channels)}: they are counted from 1")

    def check_channels(self) -> None:
        """Raise UsageError where channels or bounds are not as many as the network reads, or one for its three."""
        if self.bounds is not None and len(self.bounds) not in (1, self.in_chans):
            raise UsageError(f"bounds of {len(self.bounds)} channels: the network reads {self.in_chans}")
        if self.channels is not None and len(self.channels) not in ((1, 3) if self.in_chans == 3 else (self.in_chans,)):
            wanted = "three, or one for grey" if self.in_chans == 3 else str(self.in_chans)
            raise UsageError(f"channels {','.join(self.channels)}: the network reads {self.in_chans}, so name {wanted}")

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The two percentiles of the range, if it is made of them."""
        match = _PERCENTILES.fullmatch(self.range)
        return None if match is None else (float(match[2]), float(match[3]))

    @property
    def of_each_image(self) -> bool:
        """Whether percentiles are those of each image."""
        return self.range.startswith("image:")

    @property
    def must_be_measured(self) -> bool:
        """Whether the range depends on all images, and is not known yet."""
        return self.percentiles is not None and not self.of_each_image and self.bounds is None

    @property
    def known_bounds(self) -> Bounds | None:
        """Black and white, where they are the same for all images and known."""
        if self.bounds is not None:
            return self.bounds
        match = _BOUNDS.fullmatch(self.range)
        return None if match is None else ((float(match[1]), float(match[2])),)

    @property
    def joins_channels(self) -> bool:
        """Whether percentiles are of all channels together, as for the colours of a picture, and not of each."""
        return self.in_chans == 3 and self.channels is None

    @property
    def floating(self) -> bool:
        """Whether pixels are float32 rather than uint8."""
        return self.in_chans != 3 or self.range == "raw"

    @property
    def keeps_photographs(self) -> bool:
        """Whether images of 8 bits in colour or grey stay as they are."""
        return self.channels is None and not self.floating and self.range in ("auto", "dtype") and self.nodata is None

    @property
    def converts_profiles(self) -> bool:
        """Whether an embedded colour profile counts."""
        return self.icc == "convert" and self.keeps_photographs

    def complete(self, other: "PixelRule") -> "PixelRule":
        """Return this rule with another one's values where this has the defaults."""
        given = {name: getattr(self, name) for name in ("range", "channels", "nodata", "icc")}
        given = {name: value for name, value in given.items() if value != getattr(PHOTOGRAPHS, name)}
        return replace(other, **given | ({"bounds": self.bounds} if "range" in given else {}))

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON has them, for :meth:`from_json`."""
        return {name: _make_list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Any) -> "PixelRule":
        """Make what :meth:`to_json` wrote. Raises UsageError for anything else."""
        if not isinstance(values, dict) or not values.keys() <= cls.__dataclass_fields__.keys():
            raise UsageError(f"pixel rule {shorten_text(repr(values))} has no meaning")
        options: dict[str, Any] = {name: _make_tuple(value) for name, value in values.items()}
        return cls(**options)


PHOTOGRAPHS = PixelRule()


def parse_channels(text: str | None) -> tuple[str, ...] | None:
    """Split ``"4,3,2"`` or names of bands at commas; None stays None."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _are_bounds(pairs: object) -> bool:
    return (
        isinstance(pairs, tuple)
        and 0 < len(pairs) <= _MAX_CHANNELS
        and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(map(is_number, pair)) and pair[0] < pair[1] for pair in pairs
        )
    )


def _make_list(value: Any) -> Any:
    return [_make_list(item) for item in value] if isinstance(value, tuple) else value


def _make_tuple(value: Any) -> Any:
    return tuple(_make_tuple(item) for item in value) if isinstance(value, list) else value
