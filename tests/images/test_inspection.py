"""What a look at a file says, for every kind of file, against what was written."""

import io

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images import PixelRule, inspect_image, make_visible

GREY = np.arange(100 * 90, dtype=np.uint16).reshape(100, 90) % 4096


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def save(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray((GREY >> 4).astype(np.uint8)).convert("RGB").save(file, name, lossless=True)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


KINDS = {
    "png": (png_encode(GREY), ("PNG", "uint16", "grey", None), (0, 4095)),
    "tiff": (tiff(GREY), ("TIFF", "uint16", "grey", None), (0, 4095)),
    "tiff, tiles": (tiff(GREY, tile=(32, 48)), ("TIFF", "uint16", "grey", None), (0, 4095)),
    "tiff, declared": (tiff(GREY, extratags=[(281, 3, 1, 4095, True)]), ("TIFF", "uint16", "grey", (0, 4095)), (0, 4095)),
    "tiff, floats": (tiff(GREY.astype(np.float32) / 2), ("TIFF", "float32", "grey", None), (0, 2047.5)),
    "webp": (save("WEBP"), ("WEBP", "uint8", "rgb", None), (0, 255)),
    "npy": (npy(GREY.astype(np.int32) - 100), (".npy", "int32", "grey", None), (-100, 3995)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_facts(kind: str) -> None:
    data, (name, dtype, colours, declared), extremes = KINDS[kind]
    facts = inspect_image(data, PixelRule("0:5000"))
    assert (facts.format, facts.width, facts.height, facts.dtype, facts.colours) == (name, 90, 100, dtype, colours)
    assert facts.declared == declared
    assert (facts.bands[0].low, facts.bands[0].high) == pytest.approx(extremes)
    assert facts.decoded is not None
    assert not facts.problem


def test_bands_missing_values_and_several_images() -> None:
    values = np.stack([np.full((40, 50), band, np.float32) for band in (-9999, 1, 2)], axis=2)
    values[0, 0] = 5
    data = tiff(values, photometric="minisblack", planarconfig="contig", extratags=[(42113, 2, 0, "-9999", True)])
    facts = inspect_image(data, PixelRule(channels=("2",), range="0:5"))
    assert (facts.colours, facts.nodata, len(facts.bands)) == ("bands", -9999, 3)
    assert [(band.name, band.low, band.high) for band in facts.bands] == [("1", 5, 5), ("2", 1, 5), ("3", 2, 5)]
    assert inspect_image(tiff(np.zeros((3, 40, 50), np.uint8), photometric="minisblack"), PixelRule()).several


def test_a_rule_that_cannot_be_applied_is_told_beside_the_facts() -> None:
    facts = inspect_image(tiff(GREY), PixelRule())
    assert facts.decoded is None
    assert "nearly black" in facts.problem
    assert facts.bands[0].high == 4095
    with pytest.raises(DecodeError, match="not an image"):
        inspect_image(b"hello", PixelRule())


def test_channels_are_made_visible() -> None:
    values = np.stack([np.linspace(low, low + 1, 400).reshape(20, 20) for low in (0, 1e3, -5)]).astype(np.float32)
    shown = make_visible(values)
    assert (shown.shape, shown.dtype) == ((20, 20, 3), np.uint8)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[-1, -1].tolist() == [255, 255, 255]
    assert np.array_equal(make_visible(values[:2]), np.repeat(make_visible(values)[..., :1], 3, axis=2))
