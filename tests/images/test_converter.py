"""Samples become channels: every kind of sample by every kind of rule, against numpy by hand."""

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images.converter import make_converter
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples


def convert(values: np.ndarray, samples: Samples, rule: PixelRule) -> np.ndarray:
    return make_converter(rule, samples, values.dtype, lambda: [values])(values)


def column(*values: float, dtype: str) -> np.ndarray:
    return np.array(values, dtype).reshape(-1, 1, 1)


GREY = {
    "8 bits": (column(0, 128, 255, dtype="u1"), Samples("grey", 8), "auto", [0, 128, 255]),
    "4 bits": (column(0, 7, 15, dtype="u1"), Samples("grey", 4), "auto", [0, 119, 255]),
    "1 bit": (column(0, 1, dtype="?"), Samples("grey", 1), "auto", [0, 255]),
    "inverted": (column(0, 128, 255, dtype="u1"), Samples("grey", 8, inverted=True), "auto", [255, 127, 0]),
    "12 bits declared": (column(0, 2048, 4095, dtype="u2"), Samples("grey", 16, declared=(0, 4095)), "auto", [0, 128, 255]),
    "16 bits": (column(0, 0x1234, 0xFFFF, dtype="u2"), Samples("grey", 16), "auto", [0, 0x12, 255]),
    "a window": (
        column(-200, -160, 40, 240, 900, dtype="i2"),
        Samples("grey", 0, declared=(-160, 240)),
        "auto",
        [0, 0, 128, 255, 255],
    ),
    "an inverted window": (
        column(-200, -60, 300, dtype="i2"),
        Samples("grey", 0, inverted=True, declared=(-160, 240)),
        "auto",
        [255, 191, 0],
    ),
    "a range": (column(0, 1000, 2000, 5000, dtype="u2"), Samples("grey", 16), "0:2000", [0, 128, 255, 255]),
    "a range below zero": (column(-3.5, -1, 0.25, dtype="f4"), Samples("grey", 0), "-1:0.5", [0, 0, 212]),
    "a range of 8 bits": (column(0, 50, 100, 200, dtype="u1"), Samples("grey", 8), "0:100", [0, 128, 255, 255]),
    "the type's range": (column(-32768, 0, 32767, dtype="i2"), Samples("grey", 0), "dtype", [0, 128, 255]),
    "the type's range of floats": (column(-1, 0.5, 2, dtype="f4"), Samples("grey", 0), "dtype", [0, 128, 255]),
    "the type's range of 12 bits in 16": (
        column(0, 0x0FFF, dtype="u2"),
        Samples("grey", 16, declared=(0, 4095)),
        "dtype",
        [0, 15],
    ),
    "32 bits": (column(0, 50_000, 100_000, dtype="u4"), Samples("grey", 0), "0:100000", [0, 128, 255]),
    "doubles": (column(1e9, 1.5e9, 2e9, dtype="f8"), Samples("grey", 0), "1e9:2e9", [0, 128, 255]),
    "NaN and infinity": (column(np.nan, 1, np.inf, -np.inf, 0.5, dtype="f4"), Samples("grey", 0), "0:1", [0, 255, 0, 0, 128]),
    "nodata of the file": (column(-9999, 20, 10, dtype="f4"), Samples("grey", 0, nodata=-9999), "10:20", [0, 255, 0]),
    "nodata, inverted": (column(0, 20, 10, dtype="u1"), Samples("grey", 8, inverted=True, nodata=0), "10:20", [0, 0, 255]),
}


@pytest.mark.parametrize("name", GREY)
def test_grey(name: str) -> None:
    values, samples, range, expected = GREY[name]
    pixels = convert(values, samples, PixelRule(range))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(values), 1, 3)
    assert pixels[:, 0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("name", [name for name in GREY if "12 bits" not in name and name not in ("16 bits", "4 bits")])
def test_floats_are_the_same_without_rounding(name: str) -> None:
    values, samples, range, expected = GREY[name]
    floats = convert(values, samples, PixelRule(range, in_chans=1))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(np.clip(floats[:, 0, 0], 0, 1) * 255, expected, atol=0.51)


def test_floats_go_on_beyond_the_range() -> None:
    floats = convert(column(-100, 300, dtype="i2"), Samples("grey", 0), PixelRule("0:100", in_chans=1))
    assert floats.ravel().tolist() == [-1.0, 3.0]


UNKNOWN = {
    "12 bits in 16": (column(0, 4095, dtype="u2"), 16, r"16-bit samples of at most 4,095, nearly black.*--range 0:4095"),
    "14 bits in 16": (column(0, 16383, dtype="u2"), 16, r"at most 16,383.*--range 0:16383"),
    "signed": (column(-5, 70, dtype="i2"), 0, r"signed 16-bit values from -5 to 70.*--range LOW:HIGH"),
    "floats": (column(0.25, 0.5, dtype="f4"), 0, r"floating-point 32-bit values from 0\.25 to 0\.5.*--range p1:p99"),
    "32 bits": (column(3, 70_000, dtype="u4"), 0, r"unsigned 32-bit values from 3 to 70000"),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_range_that_nothing_says(name: str, in_chans: int) -> None:
    values, bits, message = UNKNOWN[name]
    with pytest.raises(UnknownRange, match=message):
        convert(values, Samples("grey", bits), PixelRule(in_chans=in_chans))


@pytest.mark.parametrize("values", [column(1 + 2j, dtype="c8"), np.zeros((1, 1, 1), "M8[s]")])
def test_complex_numbers_have_no_brightness(values: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="no brightness"):
        convert(values, Samples("grey", 0), PixelRule("0:1"))


def test_values_that_the_file_declares_impossible() -> None:
    with pytest.raises(DecodeError, match="samples of 5,000, but the file declares that they have 12 bits"):
        convert(column(0, 5000, dtype="u2"), Samples("grey", 16, declared=(0, 4095)), PixelRule())


BANDS = np.arange(5, dtype=np.uint8).reshape(1, 1, 5) * 10
NAMED = Samples("bands", 8, names=("Blue", "Green", "Red", "NIR", "SWIR"))


@pytest.mark.parametrize(
    ("channels", "in_chans", "expected"),
    [
        (("4", "3", "2"), 3, [30, 20, 10]),
        (("nir", "Red", "GREEN"), 3, [30, 20, 10]),
        (("5",), 3, [40, 40, 40]),
        (("1", "5"), 2, [0, 40 / 255]),
        (None, 5, [value / 255 for value in (0, 10, 20, 30, 40)]),
    ],
)
def test_chosen_channels(channels: tuple | None, in_chans: int, expected: list[float]) -> None:
    pixels = convert(BANDS, NAMED, PixelRule(channels=channels, in_chans=in_chans))
    np.testing.assert_allclose(pixels[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PixelRule(), r"5 bands \(Blue, Green, Red, NIR, SWIR\) without a word on which of them.*--channels 3,2,1"),
        (PixelRule(in_chans=4), "the network's 4 channels are: choose with --channels, such as --channels 4,3,2,1"),
        (PixelRule(channels=("6",)), "channel 6: the image has 5, called Blue"),
        (PixelRule(channels=("thermal",)), "channel thermal: the image has 5, called Blue"),
    ],
)
def test_channels_that_are_not_there(rule: PixelRule, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        convert(BANDS, NAMED, rule)


def test_colours_without_a_choice_and_what_lies_behind_them() -> None:
    naip = np.array([[[10, 20, 30, 40]]], np.uint8)
    assert convert(naip, Samples("rgb", 8), PixelRule())[0, 0].tolist() == [10, 20, 30]
    assert convert(naip, Samples("rgb", 8), PixelRule(channels=("4", "1", "2")))[0, 0].tolist() == [40, 10, 20]
    transparent = Samples("rgb", 8, alpha=3)
    assert convert(naip, transparent, PixelRule(channels=("4", "1", "2")))[0, 0].tolist() == [40, 10, 20]
    over_white = convert(naip, transparent, PixelRule())[0, 0]
    np.testing.assert_allclose(over_white, [255 - (255 - value) * 40 / 255 for value in (10, 20, 30)], atol=1)


def test_grey_of_a_picture_is_its_luminance() -> None:
    pixel = np.array([[[200, 100, 50]]], np.uint8)
    grey = convert(pixel, Samples("rgb", 8), PixelRule(in_chans=1))[0, 0, 0]
    assert grey == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, rel=1e-6)


def test_percentiles_of_each_image() -> None:
    values = np.arange(1000, dtype=np.uint16).reshape(10, 100, 1)
    pixels = convert(values, Samples("grey", 16), PixelRule("image:p10:p90"))[..., 0].ravel()
    low, high = 100, 900
    np.testing.assert_allclose(pixels, np.clip((np.arange(1000) - low) * 255 / (high - low), 0, 255), atol=1)
    with pytest.raises(DecodeError, match="percentiles 10 and 90 are both 7: there is no contrast"):
        convert(np.full((4, 4, 1), 7, np.uint16), Samples("grey", 16), PixelRule("image:p10:p90"))
    with pytest.raises(DecodeError, match="no pixel has data"):
        convert(np.full((4, 4, 1), np.nan, np.float32), Samples("grey", 0), PixelRule("image:p10:p90"))


def test_percentiles_of_all_images_are_measured_before() -> None:
    with pytest.raises(UsageError, match="range 'p1:p99' is measured on all images of a job: give LOW:HIGH, or image:p1:p99"):
        convert(column(1, 2, dtype="u1"), Samples("grey", 8), PixelRule("p1:p99"))


def test_large_images_are_converted_in_parts_that_join() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (1500, 900, 1), np.uint16)
    pixels = convert(values, Samples("grey", 16), PixelRule("0:4095"))[..., 0]
    np.testing.assert_array_equal(pixels, np.rint(values[..., 0].astype(np.float32) * np.float32(255 / 4095)).astype(np.uint8))


def test_missing_pixels_are_noted() -> None:
    samples = Samples("grey", 8, nodata=0)
    for values, missing in ((column(1, 2, dtype="u1"), False), (column(0, 2, dtype="u1"), True)):
        converter = make_converter(PixelRule(), samples, values.dtype, lambda values=values: [values])
        converter(values)
        assert converter.missing is missing


PICTURE = np.random.default_rng(1).integers(40, 200, (8, 8, 3), np.uint8)
OPAQUE = np.full((8, 8, 1), 255, np.uint8)
RGBA = np.concatenate([PICTURE, OPAQUE], 2)


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        (RGBA, Samples("rgb", 8, alpha=3)),
        (np.asarray(Image.fromarray(PICTURE).convert("CMYK")), Samples("cmyk", 8)),
        (np.arange(64, dtype=np.uint8).reshape(8, 8, 1), Samples("palette", 8, palette=PICTURE.reshape(64, 3))),
    ],
    ids=["transparency", "inks", "palette"],
)
@pytest.mark.parametrize("range", ["auto", "dtype", "60:160", "image:p5:p95", "0:4095", "raw"])
@pytest.mark.parametrize("nodata", [None, int(PICTURE[0, 0, 0])])
def test_a_range_is_of_the_picture_whatever_kind_of_8_bits_it_is_stored_in(
    values: np.ndarray, samples: Samples, range: str, nodata: float | None
) -> None:
    rule = PixelRule(range, nodata=nodata)
    expected = convert(PICTURE, Samples("rgb", 8), rule)
    converter = make_converter(rule, samples, values.dtype, lambda: [values])
    np.testing.assert_array_equal(converter(values), expected)
    assert converter.missing is (nodata is not None)


@pytest.mark.parametrize("range", ["10000:40000", "image:p5:p95", "raw"])
def test_a_range_of_more_bits_leaves_transparency(range: str) -> None:
    deep = np.uint16(257)
    expected = convert(PICTURE * deep, Samples("rgb", 16), PixelRule(range))
    np.testing.assert_array_equal(convert(RGBA * deep, Samples("rgb", 16, alpha=3), PixelRule(range)), expected)
    floats = np.concatenate([PICTURE * np.float32(257), np.ones((8, 8, 1), np.float32)], 2)
    np.testing.assert_array_equal(convert(floats, Samples("rgb", 0, alpha=3), PixelRule(range)), expected)


def test_percentiles_of_a_picture_are_of_all_its_parts() -> None:
    rows = np.repeat(np.arange(256, dtype=np.uint8), 8)[:, None, None]
    values = np.broadcast_to(rows, (2048, 1024, 1))  # more than is converted at a time
    grey = Samples("palette", 8, palette=np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1))
    pixels = convert(np.ascontiguousarray(values), grey, PixelRule("image:p10:p90"))[:, 0, 0]
    low, high = 25, 230
    np.testing.assert_allclose(pixels, np.clip((rows[:, 0, 0] - float(low)) * 255 / (high - low), 0, 255), atol=1)
