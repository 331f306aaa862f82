"""Mean and deviation of each channel that a network reads, from a file."""

from dataclasses import dataclass, replace
from pathlib import Path

from densefeat.base import describe_error, parse_json, shorten_text
from densefeat.errors import UsageError
from densefeat.images.pixel_rule import PixelRule

_MAX_BYTES = 2**20


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of each channel, of values that are 0 for black and 1 for white.

    ``rule``: the pixel rule by which they were measured, where that is known.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rule: PixelRule | None = None

    @classmethod
    def make_blank(cls, channels: int) -> "ChannelStats":
        """Make mean 0 and deviation 1, until those of images are measured."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def complete_rule(self, rule: PixelRule) -> PixelRule:
        """Return a rule with the range and channels that the numbers are of, where it has none of its own.

        Raises UsageError where it has others.
        """
        if self.rule is None:
            return rule
        if rule.range == "auto":
            rule = replace(rule, range=self.rule.range, bounds=self.rule.bounds)
        if rule.channels is None:
            rule = replace(rule, channels=self.rule.channels)
        for name in ("range", "bounds", "channels"):
            made, wanted = getattr(self.rule, name), getattr(rule, name)
            if made != wanted:
                raise UsageError(
                    f"--channel-stats: the store's mean and deviation are of images by {name} {made}, not {wanted}: leave out"
                    " --range and --channels, which are then the store's, or measure them with --channel-stats fit"
                )
        return rule


def read_channel_stats(path: Path) -> ChannelStats:
    """Read a JSON file ``{"mean": [...], "std": [...]}``. Raises UsageError for any other."""
    subject = f"channel statistics {str(path)!r}"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{subject}: {path.stat().st_size:,} bytes are too many for means and deviations")
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{subject}: {error.strerror or describe_error(error)}") from error
    except ValueError as error:
        raise UsageError(f"{subject}: not JSON: {describe_error(error)}") from error
    mean, std = (content.get(name) if isinstance(content, dict) else None for name in ("mean", "std"))
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != len(std):
        raise UsageError(f'{subject}: {shorten_text(repr(content))} is not {{"mean": [...], "std": [...]}}, a number a channel')
    return ChannelStats(tuple(mean), tuple(std))
