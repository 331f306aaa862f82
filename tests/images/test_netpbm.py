"""Netpbm files give the numbers that they hold, between black and the white that they declare."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import decode
from densefeat.images.netpbm import is_netpbm, read_netpbm
from densefeat.images.pixel_rule import PixelRule

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (4, 5, 3), np.uint8)


def read(data: bytes, rule: PixelRule | None = None) -> np.ndarray:
    pixels = (decode(data) if rule is None else decode(data, rule=rule)).pixels
    return np.asarray(pixels).astype(int) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()


def write_text(values: np.ndarray) -> bytes:
    return b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values) + b"\n"


def write_pam(values: np.ndarray, white: int, kind: str) -> bytes:
    lines = f"P7\nWIDTH {values.shape[1]}\nHEIGHT {values.shape[0]}\n# made by hand\nDEPTH {values.shape[2]}\nMAXVAL {white}\n"
    return f"{lines}TUPLTYPE {kind}\nENDHDR\n".encode() + values.tobytes()


def test_pillow_writes_what_is_read() -> None:
    for mode in ("1", "L", "RGB"):
        image = Image.fromarray(COLOURS).convert(mode)
        file = io.BytesIO()
        image.save(file, "PPM")
        assert np.array_equal(read(file.getvalue()), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("white", [1, 15, 100, 255, 1000, 4095, 32767])
@pytest.mark.parametrize("text", [True, False])
def test_white_is_declared(white: int, text: bool) -> None:
    values = RNG.integers(0, white + 1, (6, 7, 3))
    values[0, 0, 0] = white
    raster = write_text(values) if text else values.astype(">u1" if white < 256 else ">u2").tobytes()
    head = b"P%d\n# a remark\n7 6 # and another\n%d\n"
    data = head % (3 if text else 6, white) + raster
    whole_bits = (white + 1).bit_count() == 1 and white > 255
    expected = values >> (white.bit_length() - 8) if whole_bits else values * (255 / white)
    assert np.abs(read(data) - expected).max() < 0.5001
    grey = head % (2 if text else 5, white) + (
        write_text(values[..., 0]) if text else values[..., 0].astype(">u1" if white < 256 else ">u2").tobytes()
    )
    assert np.abs(read(grey)[..., 1] - expected[..., 0]).max() < 0.5001
    assert np.array_equal(read(data, PixelRule(range="raw")), values.astype(np.float32))


def test_the_white_of_sixteen_bits_declares_nothing() -> None:
    values = np.array([[4095, 7]], ">u2")
    with pytest.raises(UnknownRange, match="16-bit samples of at most 4,095, nearly black"):
        decode(b"P5 2 1 65535\n" + values.tobytes())
    assert read(b"P5 2 1 65535\n" + np.array([[65535, 256]], ">u2").tobytes())[..., 0].tolist() == [[255, 1]]


def test_bits_are_black_where_they_are_set() -> None:
    bits = RNG.integers(0, 2, (3, 11), np.uint8)
    expected = np.repeat((1 - bits.astype(int))[..., None] * 255, 3, 2)
    assert np.array_equal(read(b"P4\n11 3\n" + np.packbits(bits, axis=1).tobytes()), expected)
    digits = b"\n".join(bytes(row + ord("0")) for row in bits)
    assert np.array_equal(read(b"P1\n11 3\n" + digits), expected)
    assert np.array_equal(read(b"P1 11 3 # pixels\n" + b" ".join(digits[i : i + 1] for i in range(len(digits)))), expected)


def test_pam() -> None:
    colours, alpha = COLOURS.astype(float), COLOURS[..., :1] / 255
    for kind, values, expected in (
        ("RGB", COLOURS, colours),
        ("GRAYSCALE", COLOURS[..., :1], colours[..., :1]),
        ("RGB_ALPHA", COLOURS[..., [0, 1, 2, 0]], colours * alpha + 255 * (1 - alpha)),
        ("GRAYSCALE_ALPHA", COLOURS[..., [1, 0]], colours[..., 1:2] * alpha + 255 * (1 - alpha)),
    ):
        assert np.abs(read(write_pam(values, 255, kind)) - expected).max() <= 1, kind
    black_and_white = RNG.integers(0, 2, (4, 5, 1), np.uint8)
    assert np.array_equal(read(write_pam(black_and_white, 1, "BLACKANDWHITE"))[..., :1], black_and_white * 255)
    bands = RNG.integers(0, 256, (4, 5, 4), np.uint8)
    with pytest.raises(DecodeError, match="4 bands without a word"):
        decode(write_pam(bands, 255, "INFRARED"))
    assert np.array_equal(read(write_pam(bands, 255, "INFRARED"), PixelRule(channels=("4", "1", "2"))), bands[..., [3, 0, 1]])


def test_several_images_in_a_file() -> None:
    assert read(b"P2 2 1 255\n1 2\nP2 2 1 255\n3 4\n")[..., 0].tolist() == [[1, 2]]
    one = b"P5 2 1 255\nab"
    assert not decode(one).several
    assert not decode(one + b"\n").several
    assert decode(one + one).several
    assert read_netpbm(io.BytesIO(one + one), with_pixels=False).several


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"P6 2 2 255\n" + bytes(11), "truncated: 11 bytes of pixels where 12 are needed"),
        (b"P4 9 2\n" + bytes(3), "truncated: 3 bytes of pixels where 4 are needed"),
        (b"P2 2 2 255\n1 2 3", "truncated or damaged: 3 numbers where 4 are needed"),
        (b"P2 2 2 255\n1 2 x 4", "damaged: the pixels of this PGM file are not all numbers"),
        (b"P1 2 2\n011", "truncated or damaged: 3 numbers where 4 are needed"),
        (b"P1 2 1\n02", "samples of 2, but the file declares that white is 1"),
        (b"P2 2 1 9\n10 3", "samples from 3 to 10, but white is 9"),
        (b"P2 2 1 9\n-1 3", "samples from -1 to 3, but white is 9"),
        (b"P5 2 1 9\n\x0a\x03", "samples of 10, but the file declares that white is 9"),
        (b"P5 2 0 9\n", "2×0 pixels of 1 samples with 9 as white"),
        (b"P5 2 1 0\nab", "2×1 pixels of 1 samples with 0 as white"),
        (b"P5 2 1 65536\nabcd", "with 65,536 as white"),
        (b"P5 2\n", "damaged: the header of this PGM file"),
        (b"P5 2 x 9\nab", "damaged: the header of this PGM file"),
        (b"P5 " + b"9" * 5000, "damaged: the header of this PGM file"),
        (b"P6 " + b"# remark\n" * 10_000 + b"1 1 255\nabc", "damaged: the header of this PPM file"),
        (b"P7\nWIDTH 1\nENDHDR\n", "damaged: the header of this PAM file"),
        (b"P7 332\n#XVVERSION", "damaged: the header of this PAM file"),
        (b"P6 100000 100000 255\nabc", "more than the limit"),
    ],
)
def test_damage(data: bytes, match: str) -> None:
    with pytest.raises(DecodeError, match=match):
        decode(data)


def test_numbers_in_text_are_bounded_in_time() -> None:
    started = time.process_time()
    with pytest.raises(DecodeError, match="bytes of numbers in text, more than the limit of 67,108,864: write it in binary"):
        decode(b"P2 9000 9000 9\n" + b"1 " * 2**25 + b"1")
    data = b"P2 1000 1000 9\n" + b"1 " * 10**6
    assert (read(data) == round(255 / 9)).all()
    assert time.process_time() - started < 3


@pytest.mark.parametrize("head", [b"P5\n", b"P1 ", b"P7\n", b"P6#", b"P3\t"])
def test_what_is_one(head: bytes) -> None:
    assert is_netpbm(head)


@pytest.mark.parametrize("head", [b"P8\n", b"P5x", b"PF\n", b"p5\n", b"P5", b""])
def test_what_is_none(head: bytes) -> None:
    assert not is_netpbm(head)
