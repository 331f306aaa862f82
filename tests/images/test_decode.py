"""Every kind of image gives the pixels a person would see; every broken one a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images.decode import decode_image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> Image.Image:
    return photographs[5]


def array(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int, photo: Image.Image) -> None:
    turned = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo if turned is None else photo.transpose(turned)
    assert np.array_equal(array(decode_image(encode(stored, exif=exif))), array(photo))


def test_unreadable_exif_costs_nothing(photo: Image.Image) -> None:
    data = encode(photo, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12garbage")
    assert decode_image(data).size == photo.size


def test_an_odd_tag_beside_the_orientation_costs_no_rotation(photo: Image.Image) -> None:
    maker_as_a_fraction = struct.pack(">HHII", 0x010F, 5, 1, 38)
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + maker_as_a_fraction + orientation + struct.pack(">III", 0, 1, 2)
    stored = photo.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(array(decode_image(encode(stored, exif=exif))), array(photo))


def test_white_is_zero(photo: Image.Image) -> None:
    grey = np.asarray(photo.convert("L"))
    data = bytearray(encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"))
    entry = data.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation: turn BlackIsZero into WhiteIsZero
    data[entry + 8 : entry + 10] = struct.pack("<H", 0)
    assert np.array_equal(array(decode_image(bytes(data)))[..., 0], 255 - grey)


def test_greyscale_and_palette_and_one_bit(photo: Image.Image) -> None:
    grey = photo.convert("L")
    assert np.array_equal(array(decode_image(encode(grey))), np.stack([np.asarray(grey)] * 3, -1))
    palette = photo.quantize(64)
    assert np.array_equal(array(decode_image(encode(palette))), array(palette.convert("RGB")))
    one_bit = photo.convert("1")
    assert set(np.unique(array(decode_image(encode(one_bit))))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_equals_its_eight_bit_self(kind: str, photo: Image.Image) -> None:
    grey = np.asarray(photo.convert("L"))
    low_bits = np.random.default_rng(0).integers(0, 256, grey.shape, dtype=np.uint16)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + low_bits)
    assert deep.mode == "I;16"
    assert np.array_equal(array(decode_image(encode(deep, kind)))[..., 0], grey)


def png_rgb16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_equals_its_eight_bit_self(photo: Image.Image) -> None:
    assert np.array_equal(array(decode_image(png_rgb16(array(photo).astype(np.uint16) * 257))), array(photo))


def test_cmyk_jpeg_looks_as_in_rgb(photo: Image.Image) -> None:
    decoded = array(decode_image(encode(photo.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(decoded - array(photo)).mean() < 6


def test_transparency_lies_over_white(photo: Image.Image) -> None:
    alpha = Image.new("L", photo.size, 0)
    alpha.paste(255, (0, 0, photo.width // 2, photo.height))
    alpha.paste(128, (0, 0, 10, 10))
    cut_out = photo.copy()
    cut_out.putalpha(alpha)
    decoded = array(decode_image(encode(cut_out)))
    assert (decoded[:, photo.width // 2 :] == 255).all()
    assert np.array_equal(decoded[10:, : photo.width // 2], array(photo)[10:, : photo.width // 2])
    half = 255 - (255 - array(photo)[:10, :10].astype(int)) * 128 / 255
    assert np.abs(decoded[:10, :10] - half).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 30, 30, 1, 2, 3])
    palette.putpixel((0, 0), 1)
    decoded = array(decode_image(encode(palette, "GIF", transparency=1)))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [200, 30, 30]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animations_give_their_first_frame(kind: str, photo: Image.Image) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "lime")]
    decoded = array(decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:])))
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_fail_and_are_never_half_grey(kind: str, photo: Image.Image) -> None:
    data = encode(photo, kind)
    assert decode_image(data).size == photo.size
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(DecodeError):
            decode_image(data[: int(len(data) * part)])


def png_header(width: int, height: int) -> bytes:
    good = encode(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">II", width, height) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not an image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop", "not an image that Pillow can read"),
        (b"\xff\xd8\xff\xe0garbage", "Truncated|not an image"),
        (png_header(0, 5), "0×5 pixels|not an image|UnidentifiedImageError"),
        (png_header(100_000, 100_000), "limit"),
        (png_header(1, 60_000), "1×60000 pixels: longer than 100 times its width"),
        (encode(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "floating-point pixels have no agreed white"),
        (encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32-bit pixels have no agreed white"),
    ],
)
def test_broken_images(data: bytes, match: str) -> None:
    with pytest.raises(DecodeError, match=match) as caught:
        decode_image(data)
    assert caught.value.stage == "decode"
    assert "\n" not in str(caught.value)
