"""Every depth and kind of PNG gives the pixels that were written; damage counts where pixels are, and only there."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import decode, decode_image
from densefeat.images.sources import open_source
from densefeat.images.tiles import TiledSource

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
HIDDEN = 70  # greys below it are transparent


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> np.ndarray:
    return np.asarray(photographs[4].crop((150, 90, 150 + 66, 90 + 50)))


def make_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(samples: np.ndarray, bits: int, colour_type: int, *more: bytes) -> bytes:
    """Write samples ``(h, w, n)`` with the chunks ``more`` before the pixels."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if bits == 16:
        rows = flat.astype(">u2").view(np.uint8)
    else:
        spread = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(spread.reshape(height, -1).astype(bool), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    end = make_chunk(b"IDAT", pixels) + make_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + end


def scale(samples: np.ndarray, bits: int) -> np.ndarray:
    return samples >> 8 if bits == 16 else np.rint(samples * (255 / (2**bits - 1)))


def lower(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit pixels with other bits; the lower eight of sixteen are random."""
    if bits < 16:
        return pixels.astype(np.int64) >> (8 - bits)
    return pixels.astype(np.int64) * 256 + np.random.default_rng(0).integers(0, 256, pixels.shape)


def list_kinds(photo: np.ndarray) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Files of every depth and colour type, with and without a transparent colour, and what a person should see."""
    for bits in (1, 2, 4, 8, 16):
        grey = lower(photo[..., 1:2], bits)
        yield f"grey of {bits} bits", write_png(grey, bits, GREY), scale(grey, bits)
        value = int(grey[20, 20, 0])
        clear = make_chunk(b"tRNS", struct.pack(">H", value))
        yield (
            f"grey of {bits} bits, {value} clear",
            write_png(grey, bits, GREY, clear),
            np.where(grey == value, 255, scale(grey, bits)),
        )
    for bits in (8, 16):
        colour = lower(photo, bits)
        yield f"rgb of {bits} bits", write_png(colour, bits, RGB), scale(colour, bits)
        value = colour[20, 20]
        clear = make_chunk(b"tRNS", struct.pack(">HHH", *value.tolist()))
        hidden = (colour == value).all(-1, keepdims=True)
        yield f"rgb of {bits} bits, one clear", write_png(colour, bits, RGB, clear), np.where(hidden, 255, scale(colour, bits))
        alpha = lower(np.broadcast_to(np.linspace(0, 255, 66).astype(np.uint8), photo.shape[:2])[..., None], bits)
        share = scale(alpha, bits) / 255
        for name, colours, kind in (("rgb", colour, RGB_ALPHA), ("grey", colour[..., :1], GREY_ALPHA)):
            over_white = scale(colours, bits) * share + 255 * (1 - share)
            yield f"{name} of {bits} bits, transparent", write_png(np.concatenate([colours, alpha], 2), bits, kind), over_white
    colours = np.random.default_rng(1).integers(0, 256, (256, 3))
    for bits in (1, 2, 4, 8):
        numbers = lower(photo[..., 1:2], bits)
        used = colours[: 2**bits]
        table = make_chunk(b"PLTE", used.astype(np.uint8).tobytes())
        yield f"palette of {bits} bits", write_png(numbers, bits, PALETTE, table), used[numbers[..., 0]]
        clear = used.copy()
        clear[1] = 255
        table += make_chunk(b"tRNS", b"\xff\0")
        yield f"palette of {bits} bits, one clear", write_png(numbers, bits, PALETTE, table), clear[numbers[..., 0]]


def test_all_kinds(photo: np.ndarray) -> None:
    count = 0
    for kind, data, expected in list_kinds(photo):
        pixels = np.asarray(decode_image(data)).astype(int)
        assert np.abs(pixels - np.broadcast_to(expected, photo.shape)).max() <= (1 if "transparent" in kind else 0.5), kind
        count += 1
    assert count == 26


@pytest.mark.parametrize("colour_type", [GREY, RGB, GREY_ALPHA, RGB_ALPHA])
def test_sixteen_bits_that_may_be_fewer(colour_type: int, photo: np.ndarray) -> None:
    samples = np.repeat(photo[..., :1], SAMPLES[colour_type], 2).astype(np.int64) * 16
    if colour_type in (GREY_ALPHA, RGB_ALPHA):
        samples[..., -1] = 65535
    with pytest.raises(UnknownRange, match=r"16-bit samples of at most \d,\d+, nearly black"):
        decode_image(write_png(samples, 16, colour_type))
    samples[0, 0, 0] = 16384
    assert decode_image(write_png(samples, 16, colour_type)).getpixel((0, 0))[0] == 64


@pytest.mark.parametrize("colour_type", [GREY, RGB, RGB_ALPHA])
@pytest.mark.parametrize("bits", [9, 10, 12, 15])
def test_significant_bits_that_are_stored_as_they_are_or_scaled(colour_type: int, bits: int, photo: np.ndarray) -> None:
    count = SAMPLES[colour_type]
    numbers = np.repeat(photo[..., :1], count, 2).astype(np.int64) * 2 ** (bits - 8) + 1
    numbers[0, 0] = 2**bits - 1
    said = make_chunk(b"sBIT", bytes([bits] * count))
    for samples in (numbers, numbers << (16 - bits)):
        if colour_type == RGB_ALPHA:
            samples = np.concatenate([samples[..., :3], np.full((*samples.shape[:2], 1), 65535)], 2)
        pixels = np.asarray(decode_image(write_png(samples, 16, colour_type, said)))
        assert np.array_equal(pixels[..., 0], numbers[..., 0] >> (bits - 8))


@pytest.mark.parametrize("said", [b"", bytes([0]), bytes([16]), bytes([17])])
def test_significant_bits_that_say_nothing(said: bytes, photo: np.ndarray) -> None:
    with pytest.raises(UnknownRange, match=r"16-bit samples of at most \d,\d+, nearly black"):
        decode_image(write_png(photo[..., :1].astype(np.int64) * 16, 16, GREY, make_chunk(b"sBIT", said)))


def test_significant_bits_of_a_few_bits_do_not_matter(photo: np.ndarray) -> None:
    """A program that reduced colours says so, and stores them as 8 bits."""
    data = write_png(photo.astype(np.int64), 8, RGB, make_chunk(b"sBIT", b"\5\6\5"))
    assert np.array_equal(np.asarray(decode_image(data)), photo)


REMARKS = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"tIME", b"eXIf", b"prVt"]


@pytest.mark.parametrize("name", REMARKS)
def test_remarks_do_not_matter(name: bytes, photo: np.ndarray, tmp_path: Path) -> None:
    """Long ones, odd ones, and those that do not match their checksum, for whole images and tiles."""
    broken = make_chunk(name, b"Comment\0something")
    odd = [
        broken[:-1] + bytes([broken[-1] ^ 1]),
        make_chunk(name, b""),
        make_chunk(name, b"\xff" * 50),
        make_chunk(name, b"Comment\0" + b"x" * 3_000_000),
        make_chunk(name, b"Comment\0\0" + zlib.compress(bytes(5_000_000))),
    ]
    for number, chunk in enumerate(odd):
        data = write_png(photo, 8, RGB, chunk)
        assert np.array_equal(np.asarray(decode_image(data)), photo)
        (tmp_path / f"{number}.png").write_bytes(data)
    assert not TiledSource(open_source(tmp_path), 32).failures


def test_pixels_that_do_not_unpack_fail_when_they_are_decoded(photo: np.ndarray) -> None:
    good = write_png(photo, 8, RGB)
    start = good.index(b"IDAT") - 4
    short = zlib.compress(bytes((photo.shape[1] * 3 + 1) * 20))  # 20 of 50 rows, and checksums that are right
    for pixels in (b"", b"garbage", zlib.compress(bytes(100)), short):
        with pytest.raises(DecodeError):
            decode(good[:start] + make_chunk(b"IDAT", pixels) + make_chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("chunk", "match"),
    [(b"IHDR", "the checksum of the PNG's chunk IHDR is wrong"), (b"PLTE", "chunk PLTE is wrong"), (b"tRNS", "chunk tRNS is wrong"), (b"IDAT", "the PNG's pixels is wrong")],
)  # fmt: skip
def test_damage_that_matters(chunk: bytes, match: str, photo: np.ndarray) -> None:
    table = make_chunk(b"PLTE", bytes(768)) + make_chunk(b"tRNS", bytes(9))
    data = bytearray(write_png(photo[..., :1], 8, PALETTE, table))
    data[data.index(chunk) + 6] ^= 1
    with pytest.raises(DecodeError, match=match):
        decode_image(bytes(data))


def test_orientation_beside_the_pixels(photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
    buffer = io.BytesIO()
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    for options in ({"exif": exif}, {"pnginfo": xmp}):
        buffer = io.BytesIO()
        stored.save(buffer, "PNG", **options)
        assert np.array_equal(np.asarray(decode_image(buffer.getvalue())), photo)


@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("PNG", 3),
        ("PNG", 1),
        ("GIF", 3),
        ("GIF", 1),
        ("WEBP", 3),
        ("WEBP", 1),
        ("TIFF", 3),
        ("TIFF", 1),
        ("MPO", 1),
        ("BMP", 1),
    ],
)
def test_several_frames_are_said(kind: str, frames: int, photo: np.ndarray, tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.roll(photo, shift, 0)) for shift in range(frames)]
    path = tmp_path / "a"
    pictures[0].save(path, kind, **({"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}))
    assert decode(path.read_bytes()).several == (frames > 1)


def test_a_png_of_many_chunks_fails(photo: np.ndarray) -> None:
    data = write_png(photo, 8, 2, *[make_chunk(b"tEXt", b"")] * 2**18)
    with pytest.raises(DecodeError, match="more than 262,144 chunks in a PNG: write it again"):
        decode_image(data)
    few = write_png(photo, 8, 2, *[make_chunk(b"tEXt", b"")] * 1000)
    assert np.array_equal(np.asarray(decode_image(few)), photo)
