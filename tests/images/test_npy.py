"""Arrays of ``.npy`` files become pixels by what their shape and type say; what could be read in two ways is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images import MEMORY, TiledSource, open_image, open_source
from densefeat.images.decode import decode
from densefeat.images.npy import read_size
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule

GENERATOR = np.random.default_rng(0)
PHOTO = GENERATOR.integers(0, 256, (64, 80, 3), np.uint8)


def save(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def to_array(pixels: Any) -> np.ndarray:
    """(h, w, c)."""
    return np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()


def read(array: np.ndarray, rule: PixelRule = PHOTOGRAPHS) -> np.ndarray:
    return to_array(decode(save(array), rule=rule).pixels)


def spread(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values[..., None], (*values.shape, 3))


DEEP = GENERATOR.integers(0, 65536, (64, 80), np.uint16)
BANDS = GENERATOR.integers(0, 256, (64, 80, 13), np.uint8)
REAL = GENERATOR.normal(0, 100, (64, 80)).astype(np.float32)
AS_REAL = np.clip((REAL.astype(np.float64) + 100) / 200, 0, 1) * 255
ARRAYS: dict[str, tuple[np.ndarray, PixelRule, np.ndarray]] = {
    "RGB": (PHOTO, PHOTOGRAPHS, PHOTO),
    "RGB in Fortran's order": (np.asfortranarray(PHOTO), PHOTOGRAPHS, PHOTO),
    "grey": (PHOTO[..., 0], PHOTOGRAPHS, spread(PHOTO[..., 0])),
    "grey with an axis of channels": (PHOTO[..., :1], PHOTOGRAPHS, spread(PHOTO[..., 0])),
    "grey with an axis of channels first": (PHOTO[None, ..., 0], PHOTOGRAPHS, spread(PHOTO[..., 0])),
    "booleans": (PHOTO[..., 0] > 99, PHOTOGRAPHS, spread((PHOTO[..., 0] > 99) * 255)),
    "16 bits": (DEEP, PHOTOGRAPHS, spread(DEEP >> 8)),
    "16 bits, big-endian": (DEEP.astype(">u2"), PHOTOGRAPHS, spread(DEEP >> 8)),
    "bands": (BANDS, PixelRule(channels=("4", "3", "2")), BANDS[..., [3, 2, 1]]),
    "bands first": (np.moveaxis(BANDS, 2, 0).copy(), PixelRule(channels=("4", "3", "2")), BANDS[..., [3, 2, 1]]),
    "floats": (REAL, PixelRule("-100:100"), spread(AS_REAL)),
    "doubles, big-endian": (REAL.astype(">f8"), PixelRule("-100:100"), spread(AS_REAL)),
    "half floats": (REAL.astype(np.float16), PixelRule("-100:100"), spread(AS_REAL)),
    "whole numbers": (REAL.astype(np.int64), PixelRule("raw", in_chans=1), np.trunc(REAL)[..., None]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str) -> None:
    array, rule, expected = ARRAYS[kind]
    tolerance = 0.55 if "float" in kind or "double" in kind else 0
    assert np.abs(read(array, rule) - expected.astype(float)).max() <= tolerance


def test_headers_of_version_2() -> None:
    assert np.array_equal(to_array(decode(save(PHOTO, (2, 0))).pixels), PHOTO)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 40, 60), np.uint8), "3 bands without a word on which of them"),
        (np.zeros((40, 60, 3), np.uint16), "3 bands without a word on which of them"),
        (np.zeros((40, 60, 4), np.uint8), "4 bands without a word"),
        (np.zeros((40, 60), np.complex64), "complex numbers are no brightness"),
        (np.zeros((40, 60), "M8[s]"), r"read are arrays of real numbers"),
        (np.zeros((40, 60), [("x", "f4")]), r"read are arrays of real numbers"),
        (np.zeros((40, 60), "S3"), r"read are arrays of real numbers"),
        (np.array([[None, {}]]), r"of object: read are arrays of real numbers"),
        (np.zeros(60), "of shape 60: an image is"),
        (np.zeros((2, 40, 60, 3)), "of shape 2×40×60×3: an image is .* one in a file"),
        (np.zeros((40, 60, 50)), "of shape 40×60×50: it is not clear which axis"),
        (np.zeros((145, 145, 200), np.uint8), "not clear which axis"),
        (np.zeros((8, 60, 12)), "not clear which axis"),
        (np.zeros((40, 60, 0)), "not clear which axis"),
        (np.zeros((0, 60)), "60×0 pixels"),
    ],
)
def test_what_is_no_image_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(save(array) if array.dtype != object else pickled(array))


def pickled(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_floats_need_a_range() -> None:
    with pytest.raises(UnknownRange, match=r"floating-point 32-bit values .* --range"):
        decode(save(REAL))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (save(PHOTO)[:-1], "15,359 bytes of an array of 15,360: truncated, or not one array"),
        (save(PHOTO) * 2, "truncated, or not one array"),
        (save(PHOTO)[:50], "ValueError"),
        (b"\x93NUMPY\x03\x00" + save(PHOTO)[8:], "of version 3.0"),
        (save(PHOTO).replace(b"(64, 80, 3)", b"(64, -8, 3)"), "pixels|not clear|not valid"),
        (save(PHOTO).replace(b"(64, 80, 3), }", b"(1<<64, 64,),}"), "ValueError"),
    ],
)
def test_damaged_arrays_are_errors(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_sizes_are_checked_before_anything_is_made() -> None:
    huge = save(PHOTO).replace(b"(64, 80, 3), }" + b" " * 20, b"(10000000, 10000000, 3), }" + b" " * 8)
    with pytest.raises(DecodeError, match=r"10000000×10000000 pixels are more than the limit of .* \(--max-pixels\)"):
        decode(huge)
    with MEMORY.limit(2**20), pytest.raises(DecodeError, match=r"\(--memory\)"):
        decode(save(np.zeros((3000, 3000), np.uint8)))
    assert read_size(io.BytesIO(save(BANDS)), 10**6) == (64, 80)


@pytest.mark.parametrize("kind", [*ARRAYS, "refused"])
def test_every_way_in_gives_equal_pixels_or_the_same_refusal(tmp_path: Path, kind: str) -> None:
    array, rule, _ = ARRAYS.get(kind, (BANDS, PHOTOGRAPHS, None))
    path = tmp_path / "array.npy"
    np.save(path, array)

    def open_tile() -> np.ndarray:
        item = next(iter(TiledSource(open_source(str(tmp_path)), 64).items(0, 1)))
        decoded = item.decode(rule=rule)
        assert decoded is not None
        return to_array(decoded.pixels)

    ways = [
        lambda: to_array(decode(path.read_bytes(), "pillow", rule=rule).pixels),
        lambda: to_array(open_image(path, rule=rule)),
        open_tile,
    ]
    outcomes: list[Any] = []
    for way in ways:
        try:
            outcomes.append(way()[:64, :64])
        except DecodeError as error:
            outcomes.append(str(error))
    assert all(np.array_equal(outcome, outcomes[0]) for outcome in outcomes[1:])
    assert isinstance(outcomes[0], str) == (kind == "refused")
