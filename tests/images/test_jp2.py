"""JPEG 2000 of every depth and kind of colours gives the samples that were written; damage has a reason."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import decode
from densefeat.images.jp2 import read_jp2
from densefeat.images.pixel_rule import PixelRule
from support.icc_profiles import convert_by_hand, make_rgb_profile

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 50, 3), np.uint8)
GREY, RGB, SYCC, CMYK, LAB = 17, 16, 18, 12, 14


def encode(values: np.ndarray, bits: int | None = None, kind: str = "j2k") -> bytes:
    return imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits, codecformat=kind, mct=False)


def make_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", 8 + len(content)) + kind + content


def wrap(codestream: bytes, *boxes: bytes) -> bytes:
    """Put a codestream into a file with these boxes in its header."""
    (width, height), count = struct.unpack_from(">LL", codestream, 8), codestream[41]
    head = make_box(b"ihdr", struct.pack(">LLHBBBB", height, width, count, codestream[42], 7, 0, 0))
    brand = make_box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return make_box(b"jP  ", b"\r\n\x87\n") + brand + make_box(b"jp2h", head + b"".join(boxes)) + make_box(b"jp2c", codestream)


def make_colour(number: int) -> bytes:
    return make_box(b"colr", b"\1\0\0" + struct.pack(">L", number))


def make_channels(*types: int) -> bytes:
    """Say of each channel what it is: 0 a colour, 1 transparency, 2 premultiplied."""
    rows = [struct.pack(">HHH", i, kind, 0 if kind else i + 1) for i, kind in enumerate(types)]
    return make_box(b"cdef", struct.pack(">H", len(types)) + b"".join(rows))


def read(data: bytes, rule: PixelRule | None = None) -> np.ndarray:
    pixels = (decode(data) if rule is None else decode(data, rule=rule)).pixels
    return np.asarray(pixels).astype(int) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["j2k", "jp2"])
def test_colours_and_grey(kind: str) -> None:
    assert np.array_equal(read(encode(COLOURS, kind=kind)), COLOURS)
    grey = COLOURS[..., 0]
    assert np.array_equal(read(encode(grey, kind=kind)), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("bits", [1, 4, 7, 9, 10, 12, 16])
def test_depths(bits: int) -> None:
    values = RNG.integers(0, 2**bits, (30, 20)).astype(np.uint8 if bits <= 8 else np.uint16)
    expected = values >> (bits - 8) if bits > 8 else np.rint(values * (255 / (2**bits - 1)))
    for kind in ("j2k", "jp2"):
        data = encode(values, bits, kind)
        assert np.array_equal(read(data)[..., 0], expected)
        assert np.array_equal(read(data, PixelRule(range="raw", in_chans=1))[..., 0], values.astype(np.float32))


def test_twelve_bits_in_sixteen_are_asked_for() -> None:
    values = RNG.integers(0, 4096, (30, 20)).astype(np.uint16)
    with pytest.raises(UnknownRange, match="16-bit samples of at most 4,0.*nearly black"):
        decode(encode(values, 16))
    assert np.array_equal(read(encode(values, 16), PixelRule(range="0:4095"))[..., 0], np.rint(values * (255 / 4095)))


def test_signed_samples() -> None:
    values = RNG.integers(-2048, 2048, (30, 20)).astype(np.int16)
    for data in (encode(values, 12), encode(values, 16)):
        with pytest.raises(UnknownRange, match="signed 16-bit values from -20.* to 20.*--range"):
            decode(data)
        scaled = np.rint(np.clip((values.astype(float) + 1000) * (255 / 2000), 0, 255))
        assert np.abs(read(data, PixelRule(range="-1000:1000"))[..., 0] - scaled).max() <= 1


def test_luminance_and_chrominance() -> None:
    converted = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    expected = np.asarray(Image.fromarray(converted, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(read(wrap(encode(converted), make_colour(SYCC))) - expected).max() <= 2


def test_ink() -> None:
    ink = RNG.integers(0, 256, (40, 50, 4), np.uint8)
    expected = np.asarray(Image.fromarray(ink, "CMYK").convert("RGB"))
    assert np.array_equal(read(wrap(encode(ink), make_colour(CMYK))), expected)


def test_palettes() -> None:
    numbers = RNG.integers(0, 16, (40, 50)).astype(np.uint8)
    table = RNG.integers(0, 256, (16, 3), np.uint8)
    palette = make_box(b"pclr", struct.pack(">HB", 16, 3) + b"\7\7\7" + table.tobytes())
    mapping = make_box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, i) for i in range(3)))
    assert np.array_equal(read(wrap(encode(numbers), make_colour(RGB), palette, mapping)), table[numbers])


@pytest.mark.parametrize(
    ("kind", "types"), [("rgb", (0, 0, 0, 1)), ("grey", (0, 1)), ("first", (1, 0, 0, 0)), ("plain", (0, 0, 0))]
)
def test_transparency_lies_over_white(kind: str, types: tuple[int, ...]) -> None:
    values = RNG.integers(0, 256, (40, 50, len(types)), np.uint8)
    colours = values[..., [i for i, meaning in enumerate(types) if not meaning]].astype(float)
    share = values[..., [types.index(1)]] / 255 if 1 in types else 1
    channels = make_channels(*types)
    if kind == "first":  # the colours are the second to fourth channel
        rows = b"".join(struct.pack(">HHH", *row) for row in ((0, 1, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)))
        channels = make_box(b"cdef", struct.pack(">H", 4) + rows)
    data = wrap(encode(values), make_colour(GREY if kind == "grey" else RGB), channels)
    assert np.abs(read(data) - (colours * share + 255 * (1 - share))).max() <= 1


def test_premultiplied_transparency() -> None:
    alpha = RNG.integers(1, 256, (40, 50, 1), np.uint8)
    values = np.concatenate([np.minimum(COLOURS, alpha), alpha], 2)
    data = wrap(encode(values), make_colour(RGB), make_channels(0, 0, 0, 2))
    assert np.abs(read(data) - (values[..., :3].astype(float) + 255 - alpha)).max() <= 2


def test_pillow_and_we_agree_on_transparency() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (40, 50, 4), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG2000")
    white = Image.new("RGBA", image.size, "white")
    assert np.array_equal(read(file.getvalue()), np.asarray(Image.alpha_composite(white, image).convert("RGB")))


def test_bands() -> None:
    values = RNG.integers(0, 256, (40, 50, 5), np.uint8)
    data = encode(values)
    with pytest.raises(DecodeError, match="5 bands without a word on which of them"):
        decode(data)
    assert np.array_equal(read(data, PixelRule(channels=("5", "2", "1"))), values[..., [4, 1, 0]])
    assert np.array_equal(read(wrap(data, make_colour(RGB))), values[..., :3])


@pytest.mark.parametrize("way", [2, 3])
def test_profiles_are_converted_once(way: int) -> None:
    """imagecodecs would convert them, too."""
    profile = make_rgb_profile("p3", 1.0)
    data = wrap(encode(COLOURS), make_box(b"colr", bytes([way, 0, 0]) + profile))
    assert np.abs(read(data) - convert_by_hand(COLOURS, "p3", 1.0)).max() <= 2
    assert np.array_equal(read(data, PixelRule(icc="ignore")), COLOURS)
    assert not decode(data).bad_profile
    broken = wrap(encode(COLOURS), make_box(b"colr", bytes([way, 0, 0]) + profile[:200]))
    assert decode(broken).bad_profile
    assert np.array_equal(read(broken), COLOURS)


def test_the_size_comes_from_the_header_alone() -> None:
    data = wrap(encode(COLOURS), make_colour(RGB))
    image = read_jp2(io.BytesIO(data), with_pixels=False)
    assert (image.width, image.height, image.several, image.data) == (50, 40, False, b"")
    assert read_jp2(io.BytesIO(data + data[data.index(b"jp2c") - 4 :])).several
    unbounded = data[: data.index(b"jp2c") - 4] + bytes(4) + data[data.index(b"jp2c") :]  # to the end of the file
    assert np.array_equal(read(unbounded), COLOURS)


PLAIN = wrap(encode(COLOURS), make_colour(RGB))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (wrap(encode(COLOURS), make_colour(LAB)), "the colour space number 14: convert to RGB"),
        (wrap(encode(COLOURS[..., 0]), make_colour(RGB)), "damaged: 1 samples a pixel where 3 are needed"),
        (PLAIN[: PLAIN.index(b"jp2c") - 4], "without a codestream"),
        (PLAIN[: PLAIN.index(b"jp2c") + 20], "truncated: the JPEG 2000 codestream ends inside its header"),
        (PLAIN.replace(b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x52"), "does not begin with its size"),
        (wrap(encode(COLOURS), make_box(b"colr", b"\1")), "the JPEG 2000 box colr is cut off"),
        (wrap(encode(COLOURS), make_box(b"cdef", b"\0\x09\0")), "the JPEG 2000 box cdef is cut off"),
        (PLAIN[:12] + make_box(b"free", b"") * 20_000, "more than 10,000 boxes"),
        (
            encode(np.zeros((3, 4, 3), np.uint8)).replace(struct.pack(">LL", 4, 3), struct.pack(">LL", 40_000, 40_000), 1),
            "limit of",
        ),
    ],
)
def test_damage(data: bytes, match: str) -> None:
    with pytest.raises(DecodeError, match=match):
        decode(data)


@pytest.mark.parametrize("kind", ["j2k", "jp2"])
def test_truncated_files_fail(kind: str) -> None:
    data = encode(COLOURS, kind=kind)
    for part in (0.1, 0.3, 0.7, 0.95, 0.999):
        with pytest.raises(DecodeError):
            decode(data[: int(len(data) * part)])
