"""Parquet files whose footers are changed, as no writer would write them."""

from pathlib import Path


def read_footer(path: Path) -> bytes:
    data = path.read_bytes()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


def write_footer(path: Path, footer: bytes) -> None:
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def change_footer(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a footer, which must occur in it."""
    footer = read_footer(path)
    assert old in footer
    write_footer(path, footer.replace(old, new))


def encode_integer(number: int) -> bytes:
    """Encode a number as Thrift's compact protocol does."""
    number, data = (number << 1) ^ (number >> 63), b""
    while number > 0x7F:
        data, number = data + bytes([number & 0x7F | 0x80]), number >> 7
    return data + bytes([number])
