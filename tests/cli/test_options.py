"""Types of options, as users write their values."""

import click
import pytest

from densefeat_cli.options import ByteCount


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("1.5 gb", 1_500_000_000), ("500MB", 500_000_000), ("64 kB", 64_000), ("7B", 7), ("1TB", 10**12)],
)
def test_numbers_of_bytes(text: str, size: int) -> None:
    assert ByteCount().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "2GiB", "two GB", "1e9B", "1,5GB"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no number of bytes: give one such as 2GB or 500MB"):
        ByteCount().convert(text, None, None)
