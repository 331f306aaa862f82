"""The same picture in every format and kind of file, read in every way: equal pixels, or the same refusal."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import decode, open_image
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sampled import find_reader
from densefeat.images.sources import open_source
from densefeat.images.tiles import TiledSource
from support.hostile import encode
from support.icc_profiles import make_cmyk_profile, make_rgb_profile

SIDE = 64
Kinds = dict[str, bytes]
PHOTO_RULES = (
    PHOTOGRAPHS,
    PixelRule(icc="ignore"),
    PixelRule(channels=("2",)),
    PixelRule(range="0:200"),
    PixelRule(in_chans=1),
)


def write_tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def write_heic(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB", pixels.shape[1::-1], pixels.tobytes()).save(file, quality=-1, chroma=444)
    return file.getvalue()


def write_ppm(pixels: np.ndarray, white: int) -> bytes:
    kind = "P6" if pixels.ndim == 3 else "P5"
    raster = pixels.astype(">u2" if white > 255 else "u1").tobytes()
    return f"{kind} {pixels.shape[1]} {pixels.shape[0]} {white}\n".encode() + raster


@pytest.fixture(scope="module")
def kinds(photographs: list[Image.Image]) -> Kinds:
    image = photographs[2].resize((SIDE, SIDE))
    pixels = np.asarray(image)
    grey, deep = np.asarray(image.convert("L")), pixels.astype(np.uint16) * 257
    twelve = (grey.astype(np.uint16) * 16).clip(0, 4095)
    clear = np.dstack([pixels, grey])
    jp2 = {"level": 0, "reversible": True, "codecformat": "jp2"}
    p3, turned = make_rgb_profile("p3", 1.0), Image.Exif()
    turned[0x0112] = 6
    return {
        "a.png": encode(image, "PNG"), "grey.png": encode(image.convert("L"), "PNG"),
        "deep.png": imagecodecs.png_encode(deep), "clear.png": encode(Image.fromarray(clear), "PNG"),
        "p3.png": encode(image, "PNG", icc_profile=p3), "twelve.png": encode(Image.fromarray(twelve), "PNG"),
        "a.jpg": encode(image, "JPEG"), "turned.jpg": encode(image, "JPEG", exif=turned),
        "p3.jpg": encode(image, "JPEG", icc_profile=p3, exif=turned),
        "ink.jpg": encode(image.convert("CMYK"), "JPEG", icc_profile=make_cmyk_profile()),
        "a.jfif": encode(image, "JPEG"), "a.webp": encode(image, "WEBP", lossless=True),
        "p3.webp": encode(Image.fromarray(clear), "WEBP", icc_profile=p3),
        "a.bmp": encode(image, "BMP"), "a.gif": encode(image, "GIF"),
        "a.tif": write_tiff(pixels, photometric="rgb", tile=(16, 16)),
        "p3.tif": write_tiff(pixels, photometric="rgb", tile=(16, 16), iccprofile=p3),
        "deep.tif": write_tiff(deep, photometric="rgb", rowsperstrip=9, iccprofile=p3),
        "twelve.tif": write_tiff(twelve, photometric="minisblack"),
        "signed.tif": write_tiff(twelve.astype(np.int16) - 2048, photometric="minisblack"),
        "bands.tif": write_tiff(clear, photometric="minisblack", planarconfig="contig"),
        "a.jp2": imagecodecs.jpeg2k_encode(pixels, **jp2), "deep.jp2": imagecodecs.jpeg2k_encode(deep, **jp2),
        "twelve.jp2": imagecodecs.jpeg2k_encode(twelve, **jp2),
        "signed.jp2": imagecodecs.jpeg2k_encode(twelve.astype(np.int16) - 2048, **jp2),
        "bands.j2k": imagecodecs.jpeg2k_encode(clear, **(jp2 | {"codecformat": "j2k"})),
        "a.ppm": write_ppm(pixels, 255), "deep.ppm": write_ppm(deep, 65535), "twelve.pgm": write_ppm(twelve, 65535),
        "declared.pgm": write_ppm(twelve, 4095),
        "a.avif": encode(image, "AVIF", icc_profile=p3, exif=turned), "clear.avif": encode(Image.fromarray(clear), "AVIF"),
        "a.heic": write_heic(pixels),
    }  # fmt: skip


def read_or_refuse(read: Callable[[], Any]) -> np.ndarray | str:
    try:
        pixels = read()
    except (DecodeError, UnknownRange) as error:
        return str(error).removeprefix("segment 0: ")
    if isinstance(pixels, torch.Tensor):
        return pixels.permute(1, 2, 0).numpy()
    return np.asarray(pixels)


def read_tile(path: Path, rule: PixelRule) -> torch.Tensor:
    """Cut the whole of the image as one tile."""
    (path.parent / "alone.txt").write_text(path.name)
    source = TiledSource(open_source(path.parent / "alone.txt"), SIDE)
    assert source.length == 1
    return next(source.items(0, 1)).decode("pillow", rule=rule).pixels


def compare_ways(path: Path, rule: PixelRule) -> bool:
    """Read a file in every way; return whether it is refused."""
    data = path.read_bytes()
    whole = read_or_refuse(lambda: decode(data, "pillow", rule=rule).pixels)
    ways: dict[str, Callable[[], Any]] = {
        "with torchvision": lambda: decode(data, "torchvision", rule=rule).pixels,
        "by its path": lambda: open_image(path, "pillow", rule),
        "as a tile": lambda: read_tile(path, rule),
    }
    for way, read in ways.items():
        found = read_or_refuse(read)
        if isinstance(whole, str) or isinstance(found, str):
            assert found == whole, f"{path.name} {way}"
            continue
        assert found.shape == whole.shape, f"{path.name} {way}"
        limit = 0.0
        if way == "with torchvision":  # two builds of libjpeg; in linear light their two levels are many in the dark
            limit = 40 if path.name == "p3.jpg" else 2
        assert np.abs(found.astype(float) - whole).max() <= limit / (1 if found.dtype == np.uint8 else 255), (
            f"{path.name} {way}"
        )
    return isinstance(whole, str)


@pytest.mark.parametrize("rule", PHOTO_RULES)
def test_every_way_in_gives_equal_pixels_or_the_same_refusal(rule: PixelRule, kinds: Kinds, tmp_path: Path) -> None:
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    refused = {name for name in kinds if compare_ways(tmp_path / name, rule)}
    bands = set() if rule.channels else {"bands.tif", "bands.j2k"}
    unknown = {"signed.tif", "signed.jp2", "twelve.png", "twelve.tif", "twelve.jp2", "twelve.pgm"}
    one_channel = (
        {name for name in kinds if name.startswith(("grey", "declared", "twelve", "signed"))} if rule.channels else set()
    )
    assert refused == bands | one_channel | (set() if rule.range == "0:200" else unknown)


def test_the_same_picture_is_the_same_in_all_containers(kinds: Kinds) -> None:
    expected = np.asarray(decode(kinds["a.png"]).pixels).astype(int)
    for name in ("a.bmp", "a.webp", "a.tif", "a.jp2", "a.ppm", "deep.png", "deep.ppm", "deep.jp2"):
        assert np.array_equal(np.asarray(decode(kinds[name]).pixels), expected), name
    assert np.abs(np.asarray(decode(kinds["a.heic"]).pixels) - expected).max() <= 4
    profiles = [np.asarray(decode(kinds[name]).pixels).astype(int) for name in ("p3.png", "p3.tif", "deep.tif")]
    assert np.array_equal(profiles[0], profiles[1])
    assert np.array_equal(profiles[0], profiles[2])
    refusals = {read_or_refuse(lambda name=name: decode(kinds[f"twelve.{name}"])) for name in ("png", "tif", "jp2", "pgm")}
    assert len(refusals) == 1
    assert "16-bit samples of at most" in refusals.pop()


@pytest.mark.parametrize("head", [b"", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"BM"])
def test_formats_that_have_no_reader_of_samples(head: bytes) -> None:
    assert find_reader(head) is None
