"""Means and deviations of channels in files."""

from dataclasses import replace
from pathlib import Path

import pytest

from densefeat.errors import UsageError
from densefeat.images import ChannelStats, PixelRule, read_channel_stats


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    file.write_text('{"mean": [0.1, 0.2, 3], "std": [1, 2e-2, 3], "note": "of 2019"}')
    assert read_channel_stats(file) == ChannelStats((0.1, 0.2, 3), (1, 0.02, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2]", "is not"),
        ('{"mean": [1], "std": [1, 2]}', "a number a channel"),
        ('{"mean": 1, "std": 1}', "a number a channel"),
        ('{"mean": "abc", "std": "abc"}', "a number a channel"),
        (" " * (2**20 + 1), "too many"),
    ],
)
def test_other_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "stats.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_channel_stats(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_channel_stats(tmp_path / "nothing.json")


MEASURED = PixelRule("p1:p99", ("4", "1"), in_chans=2, bounds=((0.0, 9.0), (1.0, 5.0)))


def test_the_range_and_channels_of_a_store_come_with_its_numbers() -> None:
    stats = ChannelStats((0.1, 0.2), (1, 1), MEASURED)
    assert stats.complete_rule(PixelRule(in_chans=2)) == MEASURED
    assert stats.complete_rule(PixelRule(in_chans=2, nodata=0)) == replace(MEASURED, nodata=0)
    assert ChannelStats((0.1, 0.2), (1, 1)).complete_rule(PixelRule("0:3")) == PixelRule("0:3")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PixelRule("0:9", in_chans=2), "are of images by range p1:p99, not 0:9: leave out --range"),
        (PixelRule("p1:p99", in_chans=2), "by bounds .* not None"),
        (PixelRule(channels=("1", "4"), in_chans=2), "by channels"),
    ],
)
def test_numbers_of_another_range_are_refused(rule: PixelRule, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChannelStats((0.1, 0.2), (1, 1), MEASURED).complete_rule(rule)
