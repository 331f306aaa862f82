"""Bands of GeoTIFFs have the names that GDAL gave them, and are transparency only where it says so."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from densefeat.errors import DecodeError
from densefeat.images.decode import decode
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.tiff import open_tiff

SENTINEL = ["B2", "B3", "B4", "B8"]


def make_item(name: str, band: int, text: str) -> str:
    return f'<Item name="{name}" sample="{band}" role="{name.lower()}">{text}</Item>'


def write(path: Path, items: str, bands: int = 4, doctype: str = "", **options: Any) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (bands, 30, 40), np.uint8)
    text = f"{doctype}<GDALMetadata>{items}</GDALMetadata>"
    options = {"photometric": "minisblack", "planarconfig": "separate"} | options
    tifffile.imwrite(path, pixels, extratags=[(42112, "s", 0, text, True)], metadata=None, **options)
    return pixels


def read_names(path: Path) -> tuple[str, ...]:
    return open_tiff(partial(open, path, "rb"), "").samples.names


def test_bands_are_chosen_by_their_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = write(path, "".join(make_item("DESCRIPTION", band, name) for band, name in enumerate(SENTINEL)))
    assert read_names(path) == tuple(SENTINEL)
    decoded = decode(path.read_bytes(), rule=PixelRule(channels=("B8", "b4", "3")))
    assert np.array_equal(np.asarray(decoded.pixels), pixels[[3, 2, 2]].transpose(1, 2, 0))
    with pytest.raises(DecodeError, match=r"channel B9: the image has 4, called B2, B3, B4, B8"):
        decode(path.read_bytes(), rule=PixelRule(channels=("B9", "B4", "B3")))


def test_bands_without_a_description_are_called_by_their_colour(tmp_path: Path) -> None:
    colours = ["Blue", "Green", "Red", "NIR"]
    path = tmp_path / "a.tif"
    pixels = write(path, "".join(make_item("COLORINTERP", band, name) for band, name in enumerate(colours)))
    decoded = decode(path.read_bytes(), rule=PixelRule(channels=("red", "green", "blue")))
    assert np.array_equal(np.asarray(decoded.pixels), pixels[[2, 1, 0]].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("items", "doctype"),
    [
        ("", ""),
        (make_item("DESCRIPTION", 0, "B2"), ""),
        ("".join(make_item("DESCRIPTION", band, "same") for band in range(4)), ""),
        ("".join(make_item("COLORINTERP", band, "Undefined") for band in range(4)), ""),
        ("".join(make_item("DESCRIPTION", band, "&amp;" * (band + 1)) for band in range(4)) + "<", ""),
        ("".join(make_item("DESCRIPTION", band, f"&a;{band}") for band in range(4)), '<!DOCTYPE x [<!ENTITY a "a">]>'),
    ],
)
def test_bands_without_names_of_their_own(items: str, doctype: str, tmp_path: Path) -> None:
    write(tmp_path / "a.tif", items, doctype=doctype)
    assert read_names(tmp_path / "a.tif") == ()


def test_infrared_is_no_transparency(tmp_path: Path) -> None:
    """Programs mark the fourth band of aerial photographs as transparency; GDAL's own word is right."""
    path = tmp_path / "a.tif"
    seen = {}
    for meaning in ("Undefined", "Alpha"):
        items = "".join(make_item("COLORINTERP", band, name) for band, name in enumerate(["Red", "Green", "Blue", meaning]))
        pixels = write(path, items, photometric="rgb", extrasamples=["unassalpha"])
        seen[meaning] = np.asarray(decode(path.read_bytes()).pixels)
    colours, alpha = pixels[:3].transpose(1, 2, 0), pixels[3][..., None] / 255
    assert np.array_equal(seen["Undefined"], colours)
    assert np.abs(seen["Alpha"] - (colours * alpha + 255 * (1 - alpha))).max() <= 1
