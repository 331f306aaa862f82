"""AVIF and HEIC: upright once, over white, in sRGB; what is missing is named."""

import io
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, features

from densefeat.errors import DecodeError
from densefeat.images.decode import decode
from densefeat.images.heif import is_avif, is_heic, read_avif, read_heic
from densefeat.images.pixel_rule import PixelRule
from support.icc_profiles import convert_by_hand, make_rgb_profile

TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """Smooth colours: uint8 ``(48, 64, 3)``."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - 2 * x - 2 * y], 2).astype(np.uint8)


def write(pixels: np.ndarray, kind: str, orientation: int = 1, icc: bytes | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "AVIF":
        if orientation != 1:
            options["exif"] = exif
        Image.fromarray(pixels).save(file, "AVIF", quality=100, subsampling="4:4:4", icc_profile=icc, **options)
        return file.getvalue()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[np.atleast_3d(pixels).shape[2]]
    image = pillow_heif.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes())
    image[0].info["exif"] = exif.tobytes()
    if icc is not None:
        image[0].info |= {"icc_profile": icc, "icc_profile_type": "prof"}
    image.save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def read(data: bytes, rule: PixelRule | None = None) -> np.ndarray:
    return np.asarray((decode(data) if rule is None else decode(data, rule=rule)).pixels).astype(int)


KINDS = ["AVIF", "HEIC"]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_turned_once(kind: str, orientation: int, colours: np.ndarray) -> None:
    """The writers put the orientation into the properties and into EXIF, which does not count."""
    data = write(colours, kind, orientation)
    upright = TURNS[orientation](colours)
    assert read(data).shape == upright.shape
    assert np.abs(read(data) - upright).max() <= 6
    assert np.abs(read(data) - upright).mean() < 1
    if orientation in (3, 6, 8):
        assert b"irot" in data


@pytest.mark.parametrize("kind", KINDS)
def test_grey(kind: str, colours: np.ndarray) -> None:
    grey = np.ascontiguousarray(colours[..., 0])
    assert np.abs(read(write(grey, kind)) - grey[..., None]).max() <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_lies_over_white(kind: str, colours: np.ndarray) -> None:
    alpha = np.full((48, 64, 1), 51, np.uint8)
    expected = 0.2 * colours + 0.8 * 255
    assert np.abs(read(write(np.concatenate([colours, alpha], 2), kind)) - expected).max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_profiles(kind: str, colours: np.ndarray) -> None:
    plain, data = write(colours, kind), write(colours, kind, icc=make_rgb_profile("p3", 1.0))
    stored = read(data, PixelRule(icc="ignore"))
    assert np.array_equal(stored, read(plain))
    assert np.abs(read(data) - convert_by_hand(stored, "p3", 1.0)).max() <= 2
    broken = decode(write(colours, kind, icc=make_rgb_profile("p3")[:200]))
    assert broken.bad_profile
    assert np.array_equal(np.asarray(broken.pixels), stored)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_of_several(kind: str, colours: np.ndarray) -> None:
    file = io.BytesIO()
    if kind == "AVIF":
        Image.fromarray(colours).save(
            file, "AVIF", quality=100, save_all=True, append_images=[Image.fromarray(colours[::-1].copy())]
        )
    else:
        images = pillow_heif.from_bytes("RGB", (64, 48), colours.tobytes())
        images.add_frombytes("RGB", (64, 48), colours[::-1].tobytes())
        images.save(file, quality=-1, chroma=444)
    assert decode(file.getvalue()).several
    assert np.abs(read(file.getvalue()) - colours).mean() < 3
    assert not decode(write(colours, kind)).several


def test_grey_of_ten_bits(colours: np.ndarray) -> None:
    deep = colours[..., 0].astype(np.uint16) * 257
    file = io.BytesIO()
    pillow_heif.from_bytes("L;16", (64, 48), deep.tobytes()).save(file, quality=-1)
    assert pillow_heif.open_heif(file).info["bit_depth"] == 10
    assert np.abs(read(file.getvalue())[..., 0] - colours[..., 0]).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_fail(kind: str, colours: np.ndarray) -> None:
    data = write(colours, kind)
    for part in (0.05, 0.3, 0.7, 0.95):
        with pytest.raises(DecodeError):
            decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_on_pixels_holds_before_they_are_decoded(kind: str, colours: np.ndarray) -> None:
    with pytest.raises(DecodeError, match=r"64×48 pixels are more than the limit of 3,071 \(--max-pixels\)"):
        decode(write(colours, kind), max_pixels=48 * 64 - 1)


def test_the_extra_is_named_where_it_is_missing(colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(colours, "HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match=r"HEIC is read with pillow-heif: pip install 'densefeat\[heif\]'") as caught:
        decode(data)
    assert caught.value.stage == "read"  # which --update tries again


def test_an_old_pillow_is_named(colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(colours, "AVIF")
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(DecodeError, match=r"AVIF is read by Pillow 11.3 or newer: pip install -U pillow"):
        decode(data)


def make_head(*brands: bytes) -> bytes:
    return (16 + 4 * len(brands)).to_bytes(4) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (make_head(b"avif", b"mif1"), "AVIF"),
        (make_head(b"avis", b"msf1"), "AVIF"),
        (make_head(b"mif1", b"miaf", b"avif"), "AVIF"),
        (make_head(b"heic", b"mif1"), "HEIC"),
        (make_head(b"mif1", b"heic"), "HEIC"),
        (make_head(b"heix"), "HEIC"),
        (make_head(b"isom", b"mp42"), None),
        (b"", None),
        (b"\0\0\0\x18ftyp", None),
    ],
)
def test_brands(head: bytes, kind: str | None) -> None:
    assert is_avif(head) == (kind == "AVIF")
    assert (is_heic(head) and not is_avif(head)) == (kind == "HEIC")


@pytest.mark.parametrize("kind", KINDS)
def test_headers(kind: str, colours: np.ndarray) -> None:
    read_header = read_avif if kind == "AVIF" else read_heic
    image = read_header(io.BytesIO(write(colours, kind)), with_pixels=False)
    assert (image.width, image.height, image.several, image.format) == (64, 48, False, kind)
