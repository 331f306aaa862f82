"""Damage for files, at random but the same for the same generator: what disks, networks and strangers do to bytes and text."""

import random
import re
from collections.abc import Callable

_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_STRING = re.compile(rb'"[^"\n]{0,60}"')
_VALUES = (
    b"NaN", b"-Infinity", b"null", b"true", b"-1", b"0", b"1e400", b"1" + 40 * b"0", b"9223372036854775808", b"4294967296",
    b"100000", b'"a"', b'""', b"0.5", b"[]", b"{}", b'["a", 1]', b'{"a": 1}', b"'", b'"', b"\n", b"..", b"\xff\xfe", b"\0",
    "é\u2028\U0001f600".encode(), b'"\\ud800"', b"2024-13-45", b"&a [*a]", b"!!python/name:os.system", b"1_000", b"|", b",",
)  # fmt: skip
_BINARY = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1, 10_000, 10**9)
_BRACKETS = (b"[", b'{"a":', b"(", b"- ")


def mutate(data: bytes, choose: random.Random, count: int) -> bytes:
    """Return ``data`` with ``count`` damages."""
    for _ in range(count):
        data = choose.choice(_MUTATORS)(data, choose)
    return data


def _flip_bits(data: bytes, choose: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 8)) if found else 0):
        found[_choose_place(data, choose)] ^= 1 << choose.randrange(8)
    return bytes(found)


def _set_number(data: bytes, choose: random.Random) -> bytes:
    """Write a number at the edge of its format, which makes sizes and offsets extreme."""
    size, order = choose.choice((1, 2, 4, 8)), choose.choice(("little", "big"))
    number = choose.choice(_BINARY) % 256**size
    return _overwrite(data, _choose_place(data, choose), number.to_bytes(size, order))  # type: ignore[arg-type]


def _fill(data: bytes, choose: random.Random) -> bytes:
    return _overwrite(data, _choose_place(data, choose), choose.choice((b"\0", b"\xff", b" ")) * choose.randrange(1, 600))


def _cut(data: bytes, choose: random.Random) -> bytes:
    return data[: _choose_place(data, choose)]


def _remove(data: bytes, choose: random.Random) -> bytes:
    start = _choose_place(data, choose)
    return data[:start] + data[start + choose.choice((1, 2, 4, 100)) :]


def _insert(data: bytes, choose: random.Random) -> bytes:
    start = _choose_place(data, choose)
    return data[:start] + choose.choice((choose.randbytes(choose.randrange(1, 20)), choose.choice(_VALUES))) + data[start:]


def _splice(data: bytes, choose: random.Random) -> bytes:
    """Repeat a slice at another place, between or over what is there."""
    start, place, count = _choose_place(data, choose), _choose_place(data, choose), choose.choice((1, 4, 16, 64, 512))
    piece = data[start : start + count]
    return choose.choice((data[:place] + piece + data[place:], _overwrite(data, place, piece)))


def _replace_value(data: bytes, choose: random.Random) -> bytes:
    """Replace a number or a quoted string in text by a value of another kind or size."""
    found = list(choose.choice((_NUMBER, _STRING)).finditer(data[:200_000]))
    if not found:
        return _insert(data, choose)
    match = choose.choice(found)
    return data[: match.start()] + choose.choice(_VALUES) + data[match.end() :]


def _nest(data: bytes, choose: random.Random) -> bytes:
    """Insert brackets, also more than any parser's stack is deep; in place of a value, half the time."""
    brackets = choose.choice(_BRACKETS) * choose.choice((3, 200, 20_000))
    found = list(_NUMBER.finditer(data[:200_000]))
    start = choose.choice(found).start() if found and choose.random() < 0.5 else _choose_place(data, choose)
    return data[:start] + brackets + data[start:]


def _overwrite(data: bytes, start: int, piece: bytes) -> bytes:
    return data[:start] + piece[: len(data) - start] + data[start + len(piece) :]


def _choose_place(data: bytes, choose: random.Random) -> int:
    """Choose a place: headers and footers, which steer a reader, are hit as often as all that lies between."""
    if not data:
        return 0
    edge = min(len(data), 256)
    return choose.choice((choose.randrange(edge), len(data) - 1 - choose.randrange(edge), choose.randrange(len(data))))


_MUTATORS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bits, _flip_bits, _set_number, _set_number, _fill, _cut, _remove, _insert, _splice, _replace_value, _replace_value, _nest,
)  # fmt: skip
