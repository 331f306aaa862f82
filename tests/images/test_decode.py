"""Every kind of image gives the pixels a person would see; every broken one a reason."""

import io
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images.decode import _DECODERS, check_decoder, decode_image, decode_pixels, open_image
from densefeat.images.guards import decode_errors
from densefeat.images.pixel_rule import PixelRule

MAKER_AS_A_FRACTION = struct.pack(">HHII", 0x010F, 5, 1, 38)
TURNED_LEFT = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
ODD_EXIF = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + MAKER_AS_A_FRACTION + TURNED_LEFT + struct.pack(">III", 0, 1, 2)
GARBAGE_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12garbage"
END_OF_IMAGE = b"\xff\xd9"
JPEGS = {
    "baseline": dict(),
    "fine": dict(quality=97, subsampling=0),  # zeros decode as pixels
    "progressive": dict(progressive=True),
    "restarts": dict(restart_marker_rows=1),
    "adobe rgb": dict(keep_rgb=True),
    "turned": dict(exif=ODD_EXIF),
}


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> Image.Image:
    return photographs[5]


def array(image: Image.Image | torch.Tensor) -> np.ndarray:
    """``(H, W, 3)``, after a look at what kind of pixels these are."""
    if isinstance(image, torch.Tensor):
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        return image.permute(1, 2, 0).numpy()
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
    jpeg = encode(stored, "JPEG", exif=exif, quality=100, subsampling=0)
    assert np.abs(array(decode_pixels(jpeg)).astype(int) - array(photo)).mean() < 1
    assert np.array_equal(array(decode_pixels(jpeg)), array(decode_image(jpeg)))


@pytest.mark.parametrize("decoder", _DECODERS)
def test_unreadable_exif_is_ignored(decoder: str, photo: Image.Image) -> None:
    with_garbage, without = encode(photo, "JPEG", exif=GARBAGE_EXIF), encode(photo, "JPEG")
    assert np.array_equal(array(decode_pixels(with_garbage, decoder)), array(decode_pixels(without, decoder)))


def test_a_damaged_tag_beside_the_orientation_does_not_matter(photo: Image.Image) -> None:
    stored = photo.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(array(decode_image(encode(stored, exif=ODD_EXIF))), array(photo))


@pytest.mark.parametrize("kind", JPEGS)
def test_torchvision_decodes_jpegs_as_pillow_does(kind: str, photo: Image.Image) -> None:
    for stored in (photo, photo.convert("L")):
        if stored.mode == "L" and kind == "adobe rgb":
            continue
        data = encode(stored, "JPEG", **JPEGS[kind])
        pixels = decode_pixels(data)
        assert isinstance(pixels, torch.Tensor)
        difference = np.abs(array(pixels).astype(int) - array(decode_pixels(data, "pillow")))
        assert difference.max() <= 2  # two builds of libjpeg-turbo, whose shortcuts may differ
        assert difference.mean() < 0.01


def test_images_that_pillow_decodes(photo: Image.Image) -> None:
    for stored, kind in ((photo.convert("CMYK"), "JPEG"), (photo, "PNG"), (photo.quantize(64), "GIF"), (photo, "WEBP")):
        data = encode(stored, kind)
        pixels = decode_pixels(data, "torchvision")
        assert isinstance(pixels, Image.Image)
        assert np.array_equal(array(pixels), array(decode_image(data)))


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


@pytest.mark.parametrize("alpha", [0, 128])
def test_a_bmp_whose_fourth_byte_is_zero_everywhere_is_opaque(alpha: int, photo: Image.Image) -> None:
    """A header of version 4 names a mask for transparency, which some programs leave empty."""
    pixels = np.dstack([array(photo)[..., ::-1], np.full((photo.height, photo.width), alpha, np.uint8)])
    header = struct.pack("<IiiHHIIiiII", 108, photo.width, -photo.height, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + pixels.nbytes, 0, 0, 14 + 108) + header + pixels.tobytes()
    expected = array(photo) if not alpha else 255 - (255 - array(photo).astype(float)) * alpha / 255
    assert np.abs(array(decode_image(data)) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frames_of_animations(kind: str, photo: Image.Image) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "lime")]
    decoded = array(decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:])))
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_fail_and_are_never_half_grey(kind: str, photo: Image.Image) -> None:
    data = encode(photo, kind)
    assert decode_image(data).size == photo.size
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(DecodeError):
            decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("decoder", _DECODERS)
@pytest.mark.parametrize("kind", [*JPEGS, "grey", "cmyk"])
def test_jpegs_without_an_end_fail(kind: str, decoder: str, photo: Image.Image) -> None:
    stored = photo.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    data = encode(stored, "JPEG", **JPEGS.get(kind, {}))
    array(decode_pixels(data, decoder))
    scan = data.index(b"\xff\xda")
    parts = [scan // 2, *(scan + (len(data) - scan) * percent // 100 for percent in (1, 10, 50, 90, 99))]
    for kept in [*parts, *(len(data) - lost for lost in range(1, 21))]:
        for rest in (b"", bytes(len(data) - kept), b"\xff" * (len(data) - kept)):
            with pytest.raises(DecodeError):
                decode_pixels(data[:kept] + rest, decoder)


@pytest.mark.parametrize("decoder", _DECODERS)
@pytest.mark.parametrize("kind", ["baseline", "fine", "restarts", "turned", "grey", "cmyk"])
def test_jpegs_that_end_before_their_last_rows_fail(kind: str, decoder: str, photo: Image.Image) -> None:
    stored = photo.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    data = encode(stored, "JPEG", **JPEGS.get(kind, {}))
    scan = data.index(b"\xff\xda")
    for percent in (10, 50, 90):
        cut = data[: scan + (len(data) - scan) * percent // 100].rstrip(b"\xff")
        with pytest.raises(DecodeError, match="truncated: the JPEG ends before its last rows"):
            decode_pixels(cut + END_OF_IMAGE, decoder)


@pytest.mark.parametrize("decoder", _DECODERS)
@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_grey_corners_of_complete_images_are_no_failure(kind: str, decoder: str, photo: Image.Image) -> None:
    corner = photo.copy()
    corner.paste((128, 128, 128), (corner.width // 2 // 16 * 16, corner.height // 2 // 16 * 16, corner.width, corner.height))
    for picture in (corner, Image.new("RGB", (50, 40), (128, 128, 128)), Image.new("L", (3, 5), 127)):
        pixels = array(decode_pixels(encode(picture, "JPEG", **JPEGS[kind]), decoder))
        assert pixels[-1, -1].tolist() in ([128] * 3, [127] * 3)


@pytest.mark.parametrize("decoder", _DECODERS)
def test_data_after_the_end_of_a_jpeg_does_not_matter(decoder: str, photo: Image.Image) -> None:
    data = encode(photo, "JPEG")
    expected = array(decode_pixels(data, decoder))
    for rest in (bytes(5000), b"text of a phone", data, data[:-500]):
        assert np.array_equal(array(decode_pixels(data + rest, decoder)), expected)
    two_pictures = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)])
    assert np.array_equal(array(decode_pixels(two_pictures, decoder)), expected)


def test_zeros_in_place_of_a_pngs_pixels_fail(photo: Image.Image) -> None:
    data = encode(photo)
    for percent in (10, 50, 90, 97):
        kept = len(data) * percent // 100
        with pytest.raises(DecodeError, match="checksum of the PNG's pixels is wrong"):
            decode_image(data[:kept] + bytes(len(data) - kept))
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    with pytest.raises(DecodeError, match="checksum"):
        decode_image(bytes(broken))


@pytest.mark.parametrize("decoder", _DECODERS)
def test_eight_threads_get_what_one_gets(decoder: str, photographs: list[Image.Image]) -> None:
    files = [encode(photographs[0], "JPEG", **options) for options in JPEGS.values()]
    files += [encode(photograph, kind) for photograph in photographs[:3] for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [encode(photographs[1], "JPEG", exif=GARBAGE_EXIF), files[0][:-200], files[0][:-200] + bytes(200), b"no"] * 4

    def result(data: bytes) -> bytes | str:
        try:
            return array(decode_pixels(data, decoder)).tobytes()
        except DecodeError as error:
            return str(error)

    expected = [result(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(result, files * 8)) == expected * 8
    with pytest.raises(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


def test_only_the_thread_that_decodes_is_quiet() -> None:
    inside, done = threading.Event(), threading.Event()

    def decode() -> None:
        with decode_errors():
            warnings.warn("of Pillow", stacklevel=1)
            inside.set()
            assert done.wait(10)

    thread = threading.Thread(target=decode)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(UserWarning, match="of another thread"):  # warnings are errors here
        warnings.warn("of another thread", stacklevel=1)
    done.set()
    thread.join()


def test_our_limit_on_pixels_applies_and_pillows_is_kept(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "PNG", "BMP"):
        data = encode(photo, kind)
        assert array(decode_pixels(data, max_pixels=photo.width * photo.height)).shape == (photo.height, photo.width, 3)
        with pytest.raises(DecodeError, match=rf"are more than the limit of {photo.width * photo.height - 1:,}"):
            decode_pixels(data, max_pixels=photo.width * photo.height - 1)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_missing_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="decoder 'opencv': choose one of torchvision, pillow"):
        decode_pixels(b"", "opencv")
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    check_decoder("pillow")
    with pytest.raises(UsageError, match="the installed torchvision decodes no JPEG, choose pillow"):
        check_decoder("torchvision")


def png_header(width: int, height: int) -> bytes:
    good = encode(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">II", width, height) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not an image of a format that is read, JPEG, PNG, WebP, BMP, GIF, TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop", "^PostScript is not among the formats read: JPEG, PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "^JPEG XL is not among the formats read: .* JPEG 2000, AVIF, HEIC, PBM"),
        (b"8BPS" + bytes(99), "^Photoshop's PSD is not among the formats read"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "ValueError|EOFError|SyntaxError"),
        (b"\xff\xd8\xff\xe0garbage", "Truncated|not an image|the JPEG has no pixels"),
        (png_header(0, 5), "0×5 pixels|not an image|UnidentifiedImageError"),
        (png_header(100_000, 100_000), "limit"),
        (
            png_header(1, 60_000),
            r"1×60000 pixels, a strip that would be resized to 15,728,640,000, are more than the limit .* \(--max-pixels\)",
        ),
        (encode(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "floating-point 32-bit values from 0.5 to 0.5"),
        (
            encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
            "signed 32-bit values from 70000 to 70000",
        ),
    ],
)
@pytest.mark.parametrize("decoder", _DECODERS)
def test_broken_images(decoder: str, data: bytes, match: str) -> None:
    with pytest.raises((DecodeError, UnknownRange), match=match) as caught:
        decode_pixels(data, decoder)
    assert getattr(caught.value, "stage", "decode") == "decode"
    assert "\n" not in str(caught.value)


def test_tensors_are_opened_as_they_are() -> None:
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    assert torch.equal(open_image(pixels), pixels)
    with pytest.raises(UsageError, match=r"shape \(4, 5\) and torch.uint8: pass \(C, H, W\)"):
        open_image(pixels[0])
    with pytest.raises(UnknownRange, match="signed 64-bit values from 0 to 59"):
        open_image(pixels.long())
    assert np.array_equal(np.asarray(open_image(pixels.long(), rule=PixelRule("0:255"))), pixels.permute(1, 2, 0))
    with pytest.raises(UsageError, match=r"shape \(3, 0, 5\)"):
        open_image(pixels[:, :0])
    assert np.asarray(open_image(pixels > 29))[..., 0].tolist() == [[0] * 5] * 4
    shares = (pixels.float() / 255).requires_grad_()
    assert np.array_equal(np.asarray(open_image(shares, rule=PixelRule("dtype"))), pixels.permute(1, 2, 0))
    halves = torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16)
    assert np.asarray(open_image(halves, rule=PixelRule("0:1"))).ravel().tolist() == [128] * 12


def bmp_in_runs(width: int, height: int, runs: bytes) -> bytes:
    """Encode a grey BMP from runs: pairs of a count and a value."""
    head = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<LLL", 14 + 40 + 1024 + len(runs), 0, 14 + 40 + 1024) + head + palette + runs


def test_a_bmp_of_many_runs_fails() -> None:
    """Pillow reads each run in Python."""
    assert (array(decode_image(bmp_in_runs(4, 1, b"\4\x63\0\1"))) == 0x63).all()
    with pytest.raises(DecodeError, match=r"^4097×4096 pixels of a BMP compressed in runs, .* convert it to PNG"):
        decode_image(bmp_in_runs(4097, 4096, b"\xff\0\0\1"))
    with pytest.raises(DecodeError, match=r"^4×1 pixels of a BMP compressed in runs, 16,7\d\d,\d{3} bytes"):
        decode_image(bmp_in_runs(4, 1, b"\0\0" * 2**23))
