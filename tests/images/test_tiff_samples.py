"""Samples of every kind, depth and layout become the pixels that were meant; what has no agreed meaning is refused by its name."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import decode_image
from support.tiffs import TILED, assert_equal_everywhere, crop_photo, opened, region


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> np.ndarray:
    return crop_photo(photographs)


RAMP = np.broadcast_to(np.linspace(0, 255, 70).astype(np.uint8), (50, 70))[..., None]
INVERTED = {"photometric": "miniswhite"}
ALPHA, PREMULTIPLIED, OTHER = ({"extrasamples": [name]} for name in ("unassalpha", "assocalpha", "unspecified"))
RGB, GREY = {"photometric": "rgb"}, {"photometric": "minisblack"}


def over_white(colour: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Lay colours (h, w, n) over white with ``RAMP``, in floating point."""
    share = RAMP / 255
    return colour + 255 * (1 - share) if premultiplied else colour * share + 255 * (1 - share)


def deepen(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit values as the highest bits of deeper ones; the others are random."""
    low = np.random.default_rng(0).integers(0, 2 ** (bits - 8), pixels.shape, dtype=np.uint16)
    return (pixels.astype(np.uint16) << (bits - 8)) + low


def make_kinds(photo: np.ndarray) -> dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]]:
    """Samples (h, w) or (h, w, n) by kind, how to write them, and the RGB or grey that a person should see."""
    grey = photo[..., 1]
    kinds: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
        "1 bit": (grey > 99, GREY, (grey > 99) * 255),
        "1 bit, white is zero": (grey > 99, INVERTED, (grey <= 99) * 255),
        "8 bits": (grey, GREY, grey),
        "8 bits, white is zero": (grey, INVERTED, 255 - grey),
        "16 bits, white is zero": (deepen(grey, 16), INVERTED, 255 - grey),
        "12 bits in 16, as its tag says": (deepen(grey, 12), GREY | {"extratags": [(281, "H", 1, 4095, True)]}, grey),
        "brightest value in the tag": (grey, GREY | {"extratags": [(281, "H", 1, int(grey.max()), True)]}, grey),
        "colours of 8 bits": (photo, RGB, photo),
        "infrared beside": (np.concatenate([photo, RAMP], 2), RGB | OTHER, photo),
        "infrared beside 16 bits": (deepen(np.concatenate([photo, RAMP], 2), 16), RGB | OTHER, photo),
        "infrared, then transparency": (
            np.concatenate([photo, photo[..., :1], RAMP], 2), RGB | {"extrasamples": ["unspecified", "unassalpha"]}, over_white(photo)),
        "transparent": (np.concatenate([photo, RAMP], 2), RGB | ALPHA, over_white(photo)),
        "transparent, 16 bits": (deepen(np.concatenate([photo, RAMP], 2), 16), RGB | ALPHA, over_white(photo)),
        "transparent grey": (np.concatenate([grey[..., None], RAMP], 2), GREY | ALPHA, over_white(grey[..., None])),
        "transparent grey, 16 bits": (deepen(np.concatenate([grey[..., None], RAMP], 2), 16), GREY | ALPHA, over_white(grey[..., None])),
        "cmyk": (np.concatenate([255 - photo, 0 * RAMP], 2), {"photometric": "separated"}, photo),
        "cmyk, 16 bits": (deepen(np.concatenate([255 - photo, 0 * RAMP], 2), 16), {"photometric": "separated"}, photo),
    }  # fmt: skip
    for bits in (2, 4, 6):
        values = grey >> (8 - bits)
        kinds[f"{bits} bits"] = values, GREY | {"bitspersample": bits}, values * (255 / (2**bits - 1))
    for bits in (10, 12, 14, 16):
        packed = {} if bits == 16 else {"bitspersample": bits}
        kinds[f"{bits} bits"] = deepen(grey, bits), GREY | packed, grey
        kinds[f"colours of {bits} bits"] = deepen(photo, bits), RGB | packed, photo
    for name, colours in (("", photo), (" grey", grey[..., None])):
        product = (colours * (RAMP / 255)).astype(np.uint8)
        how = (GREY if name else RGB) | PREMULTIPLIED
        kinds[f"premultiplied{name}"] = np.concatenate([product, RAMP], 2), how, over_white(product, True)
        kinds[f"premultiplied{name}, 16 bits"] = deepen(np.concatenate([product, RAMP], 2), 16), how, over_white(product, True)
    ink = (grey[..., None] * (RAMP / 255)).astype(np.uint8)  # zero is white: what is multiplied is ink
    kinds["premultiplied, white is zero"] = np.concatenate([ink, RAMP], 2), INVERTED | PREMULTIPLIED, 255.0 - ink
    none, cyan = 0 * RAMP, (grey[..., None] * (RAMP / 255)).astype(np.uint8)
    inks = np.concatenate([cyan, none, none, none, RAMP], 2)
    seen = np.concatenate([255.0 - cyan, none + 255.0, none + 255.0], 2)
    kinds["premultiplied cmyk"] = inks, {"photometric": "separated"} | PREMULTIPLIED, seen
    palette = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16)
    for name, colormap in (("palette", palette * 257), ("palette of 8 bits", palette)):
        kinds[name] = grey, {"photometric": "palette", "colormap": colormap}, palette.T[grey]
    return kinds


KINDS = list(make_kinds(np.zeros((50, 70, 3), np.uint8)))
LAYOUTS = [TILED, {"rowsperstrip": 9}, {}]
COMPRESSIONS = [None, "zlib", "lzw", "zstd", "packbits", "lzma"]


def list_ways(samples: np.ndarray, options: dict[str, Any], full: bool) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """List how tifffile can write samples: by tile and strip, pixel by pixel and plane by plane, in both byte orders, compressed."""
    packed = "bitspersample" in options
    whole_bytes = samples.dtype != bool and not packed
    for layout, compression, byteorder, predictor in product(
        LAYOUTS, COMPRESSIONS if full else [None, "lzw"], "<>" if full else "<", [False, True]
    ):
        if packed and (compression or byteorder == ">"):
            continue  # tifffile does not write these, or writes other values
        if predictor and not (whole_bytes and compression in ("zlib", "lzw", "zstd")):
            continue
        how = {**options, **layout, "compression": compression, "byteorder": byteorder, "predictor": predictor}
        yield samples, how
        if samples.ndim == 3:
            yield np.moveaxis(samples, 2, 0), how | {"planarconfig": "separate"}


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some ways", "all ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_and_by_region_give_what_was_written(kind: str, full: bool, photo: np.ndarray, tmp_path: Path) -> None:
    samples, options, expected = make_kinds(photo)[kind]
    expected = expected[..., None] if expected.ndim == 2 else expected
    count = 0
    for array, how in list_ways(samples, options, full):
        path = tmp_path / f"{count}.tif"
        tifffile.imwrite(path, array, **how)
        whole = np.asarray(decode_image(path.read_bytes()))
        difference = whole - np.broadcast_to(expected, photo.shape).astype(float)
        assert np.abs(difference).max() <= (1 if "transparent" in kind or "premultiplied" in kind else 0.5), how
        assert_equal_everywhere(opened(path), whole)
        count += 1
    assert count >= 3


BANDS = np.zeros((40, 40, 5), np.uint8)


@pytest.mark.parametrize(
    ("pixels", "options", "match"),
    [
        (np.zeros((40, 40), np.float32), {}, "floating-point 32-bit values from 0 to 0, and the file does not say which are black"),
        (np.zeros((40, 40), np.float16), {}, "floating-point 16-bit values from 0 to 0"),
        (np.zeros((40, 40), np.int8), {}, "signed 8-bit values from 0 to 0"),
        (np.full((40, 40), -7, np.int16), {}, "signed 16-bit values from -7 to -7"),
        (np.zeros((40, 40), np.int32), {}, "signed 32-bit values from 0 to 0"),
        (np.zeros((40, 40), np.uint32), {}, "unsigned 32-bit values from 0 to 0"),
        (np.zeros((40, 40), np.uint64), {}, "unsigned 64-bit values from 0 to 0"),
        (np.zeros((40, 40), np.complex64), {}, "samples of 64 bits and format COMPLEX_?IEEEFP: write real numbers, not complex ones"),
        (BANDS[..., :2], GREY | OTHER, "2 bands without a word on which of them the network's 3 channels are"),
        (BANDS[..., :3], GREY | {"planarconfig": "contig"}, "3 bands without a word"),
        (BANDS, GREY | {"planarconfig": "contig"}, "5 bands without a word"),
        (np.moveaxis(BANDS, 2, 0), GREY | {"planarconfig": "separate"}, "5 bands without a word"),
        (BANDS[..., 0], {"photometric": "cfa"}, "TIFF with colours CFA"),
        (BANDS[..., :3], {"photometric": "cielab"}, "TIFF with colours CIELAB"),
        (BANDS[..., :4], {"photometric": "separated", "extratags": [(332, "H", 1, 2, True)]}, "TIFF with colours SEPARATED"),
        (BANDS[..., :4], RGB | ALPHA | {"compression": "jpeg2000"}, "4 samples of 8 bits in JPEG"),
        (BANDS[..., 0], {"compression": "lerc"}, "TIFF with compression LERC"),
        (np.full((40, 40), 4096, np.uint16), {"extratags": [(281, "H", 1, 4095, True)]}, "samples of 4,096, but the file declares that they have 12 bits"),
        (np.zeros((16, 48, 48), np.uint8), {"volumetric": True, "tile": (16, 16, 16)}, "volumes"),
    ],
)  # fmt: skip
def test_kinds_without_an_agreed_meaning(pixels: np.ndarray, options: dict, match: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises((DecodeError, UnknownRange), match=match):
        region(opened(tmp_path / "a.tif"), 0, 0, 9, 9)
    with pytest.raises((DecodeError, UnknownRange), match=match):
        decode_image((tmp_path / "a.tif").read_bytes())


@pytest.mark.parametrize("largest", [1, 255, 256, 4080, 4095, 16383])
@pytest.mark.parametrize("layout", [TILED, {}], ids=str)
def test_sixteen_bits_that_may_be_fewer(largest: int, layout: dict, photo: np.ndarray, tmp_path: Path) -> None:
    pixels = (photo[..., 1] / photo.max() * largest).astype(np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **layout)
    with pytest.raises(UnknownRange, match=f"16-bit samples of at most {pixels.max():,}, nearly black"):
        decode_image(path.read_bytes())
    with pytest.raises(UnknownRange, match="nearly black"):
        region(opened(path), 0, 0, 9, 9)
    pixels[49, 69] = 16384
    tifffile.imwrite(path, pixels, **layout)
    assert decode_image(path.read_bytes()).getpixel((69, 49)) == (64, 64, 64)
    assert region(opened(path), 69, 49, 1, 1).tolist() == [[[64, 64, 64]]]
    tifffile.imwrite(path, 0 * pixels, **layout)
    assert not np.asarray(decode_image(path.read_bytes())).any()
