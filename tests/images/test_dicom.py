"""DICOM files of every kind become the pixels that pydicom's own way gives, and that the standard's formulas give by hand."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from densefeat.errors import DecodeError, UnknownRange
from densefeat.images import MEMORY, TiledSource, open_image, open_source
from densefeat.images.decode import decode
from densefeat.images.dicom import read_dicom
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from support.dicoms import COMPRESSED, NATIVE, make_dicom
from support.icc_profiles import convert_by_hand, make_rgb_profile

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
SCIENCE = Path(__file__).parents[3] / "shared" / "data" / "science" / "dicom"
REAL = sorted([*PYDICOM.glob("*.dcm"), *SCIENCE.glob("*.dcm")])
FLOATS = PixelRule(in_chans=1)


def read(data: bytes, rule: PixelRule = PHOTOGRAPHS) -> np.ndarray:
    """Pixels (h, w, c)."""
    pixels = decode(data, rule=rule).pixels
    return np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()


def read_grey(data: bytes, rule: PixelRule = PHOTOGRAPHS) -> np.ndarray:
    pixels = read(data, rule)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def ramp(bits: int, signed: bool = False) -> np.ndarray:
    """All values of so many bits, or 65,536 of them, (h, w)."""
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.linspace(low, low + 2**bits - 1, 2 ** min(bits, 16)).round().astype(np.int64)
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}"
    return values.astype(kind).reshape(-1, 2 ** (min(bits, 16) // 2))


def show(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Brightness from 0 to 255 of values, in double precision."""
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def show_by_pydicom(path: Path) -> np.ndarray:
    """Show the first frame as pydicom does, brightness from 0 to 255."""
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    array = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(array, dataset)
        return colours / 257 if colours.max() > 255 else colours
    if dataset.SamplesPerPixel == 3:
        return array / (2.0**dataset.BitsAllocated - 1) * 255
    values = apply_modality_lut(array, dataset)
    whole = 2.0**dataset.BitsStored
    ends = np.array([-whole / 2, whole / 2 - 1] if dataset.PixelRepresentation else [0, whole - 1])
    low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    if dataset.get("VOILUTSequence"):
        low, high = 0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    grey = show(apply_voi_lut(values, dataset), low, high)[..., None]
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


REFUSED = {
    "CT_small.dcm": "from -896 to 1167, and the file does not say which are black and white: give --range",  # signed 16 bits
    "JPEG-LL.dcm": "signed 16-bit values from 0 to 278",
    "JPEG2000.dcm": "signed 16-bit values from -30 to 245",
    "JPEG2000-embedded-sequence-delimiter.dcm": "JPEG 2000 of 14,540,801 tiles",
    "MR_truncated.dcm": "truncated: the DICOM ends before its pixels",
    "badVR.dcm": r"the DICOM cannot be read \(ValueError\)$",  # frames: "1A"
    "meta_missing_tsyntax.dcm": "whose photometric interpretation is none of",
    "nested_priv_SQ.dcm": "whose photometric interpretation is none of",
    "no_meta.dcm": "not an image of a format that is read",
    **{f"rtdose{kind}.dcm": "unsigned 32-bit values from 795000" for kind in ("", "_1frame", "_expb", "_expb_1frame", "_rle", "_rle_1frame")},
    **{
        f"{name}.dcm": "a DICOM without pixels, or truncated before them"
        for name in (
            "ExplVR_BigEndNoMeta", "ExplVR_LitEndNoMeta", "UN_sequence", "empty_charset_LEI", "no_meta_group_length", "priv_SQ",
            "reportsi", "reportsi_with_empty_number_tags", "rtplan", "rtplan_truncated", "rtstruct", "test-SR", "waveform_ecg")
    },
}  # fmt: skip
BEYOND_PYDICOM = ("JPEG-lossy.dcm", "liver_deflate.dcm", "parametric_map_float.dcm")
LOSSY_COLOURS = 4  # two decoders and two matrices, each of which rounds


@pytest.mark.filterwarnings("ignore:The pixel data is 8320 bytes", "ignore:Expected explicit VR", "ignore:Invalid value for VR")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_look_as_pydicom_shows_them(path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises((DecodeError, UnknownRange), match=REFUSED[path.name]):
            decode(path.read_bytes())
        return
    pixels = read(path.read_bytes()).astype(float)
    if path.name not in BEYOND_PYDICOM:
        expected = show_by_pydicom(path)
        assert np.abs(pixels - expected).max() <= (LOSSY_COLOURS if expected.shape[2] == 3 else 1)


def test_frames_that_pydicom_cannot_decode() -> None:
    if not SCIENCE.exists():
        pytest.skip("not among pydicom's own files")
    liver = read_grey((SCIENCE / "liver_deflate.dcm").read_bytes())
    assert np.array_equal(liver, read_grey((PYDICOM / "liver_1frame.dcm").read_bytes()))
    assert set(np.unique(liver)) == {0, 255}
    data = (SCIENCE / "parametric_map_float.dcm").read_bytes()
    values = np.frombuffer(pydicom.dcmread(SCIENCE / "parametric_map_float.dcm").FloatPixelData, "<f4").reshape(128, 128)
    assert np.array_equal(read(data, FLOATS)[..., 0], values)  # its window is 0 to 1
    assert np.abs(read_grey(data) - values * 255.0).max() <= 0.5


LAYOUTS: dict[str, tuple[np.ndarray, int]] = {
    "8 bits": (ramp(8), 8),
    "16 bits": (ramp(16), 16),
    "12 in 16": (ramp(12), 12),
    "12 in 16, signed": (ramp(12, signed=True), 12),
    "16 bits, signed": (ramp(16, signed=True), 16),
    "RGB": (np.stack([ramp(8), ramp(8).T, ramp(8)[::-1]], 2), 8),
    "RGB of 16 bits": (np.stack([ramp(16), ramp(16).T, ramp(16)[::-1]], 2), 16),
}
LOSSY = {"jpeg": "8 bits", "jpeg of 12 bits": "12 in 16"}


@pytest.mark.parametrize(
    ("way", "layout"),
    [*LOSSY.items(), *((way, layout) for way in (*NATIVE, *COMPRESSED) if way not in LOSSY for layout in LAYOUTS)],
)
def test_every_layout_in_every_compression(way: str, layout: str) -> None:
    pixels, bits = LAYOUTS[layout]
    lossy = way in LOSSY
    low = int(pixels.min()) if pixels.ndim == 2 else 0
    expected = np.floor((pixels.astype(np.int64) - low) / 2 ** (bits - 8))
    if pixels.dtype.kind == "i":
        expected = show(pixels, low, low + 2**bits - 1)
    if pixels.ndim == 2:
        expected = expected[..., None]
    ours = read(make_dicom(pixels, way, BitsStored=bits))
    assert np.abs(ours - expected).max() <= (8 if lossy else 0.51 if pixels.dtype.kind == "i" else 0)


@pytest.mark.parametrize("way", ["implicit", "explicit", "big-endian"])
def test_files_without_preamble(way: str) -> None:
    pixels = ramp(12)
    assert np.array_equal(
        read(make_dicom(pixels, way, preamble=False, BitsStored=12)), read(make_dicom(pixels, way, BitsStored=12))
    )


def window(centre: float, width: float, **others: Any) -> dict[str, Any]:
    return {"WindowCenter": centre, "WindowWidth": width} | others


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 255 / (1 + np.exp(-4 * (x - 700) / 300.0))


RESCALE = {"RescaleSlope": 1, "RescaleIntercept": -1024}
X = ramp(12).astype(float)
WINDOWS: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "none": ({}, np.floor(X / 16)),
    "none, rescaled": (RESCALE, show(X - 1024, -1024, 3071)),
    "linear": (window(40, 400), show(X, -160 + 0.5 - 0.5, 239)),  # 40 - 0.5 ± 399 / 2
    "of two": (window([40, 100], [400, 7]), show(X, -160, 239)),
    "rescaled": (window(40, 400) | RESCALE, show(X - 1024, -160, 239)),
    "sloped": (window(40, 400, RescaleSlope=0.5, RescaleIntercept=-100), show(X / 2 - 100, -160, 239)),
    "falling": (window(-40, 400, RescaleSlope=-1, RescaleIntercept=0), show(-X, -240, 159)),
    "exact": (window(40, 400, VOILUTFunction="LINEAR_EXACT"), show(X, -160, 240)),
    "sigmoid": (window(700, 300, VOILUTFunction="SIGMOID"), sigmoid(X)),
    "a threshold": (window(500, 1), (X > 499.5) * 255.0),
    "of no width": (window(500, 0), np.floor(X / 16)),
}


@pytest.mark.parametrize(("elements", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_windows(elements: dict[str, Any], expected: np.ndarray) -> None:
    data = make_dicom(ramp(12), BitsStored=12, **elements)
    assert np.abs(read_grey(data) - expected).max() <= 0.51
    inverse = make_dicom(ramp(12), BitsStored=12, PhotometricInterpretation="MONOCHROME1", **elements)
    assert np.array_equal(read_grey(inverse), 255 - read_grey(data))


@pytest.mark.parametrize("elements", [RESCALE, RESCALE | window(40, 400), RESCALE | window(700, 300, VOILUTFunction="SIGMOID")])
def test_a_range_is_in_rescaled_units(elements: dict[str, Any]) -> None:
    data = make_dicom(ramp(12), BitsStored=12, **elements)
    assert np.abs(read_grey(data, PixelRule("-160:240")) - show(X - 1024, -160, 240)).max() <= 0.51
    assert np.array_equal(read(data, PixelRule("raw", in_chans=1))[..., 0], X - 1024)
    assert np.abs(read_grey(data, PixelRule("dtype")) - show(X - 1024, -1024, 3071)).max() <= 0.51


def make_table(first: int, entries: np.ndarray, bits: int) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first % 2**16, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return pydicom.Sequence([item])


def test_tables_for_values_and_for_the_screen() -> None:
    entries = (np.arange(1000) ** 2 // 250).astype(np.uint16)  # up to 3,992
    table = make_table(100, entries, 12)
    looked_up = entries[np.clip(X.astype(int) - 100, 0, 999)]
    for sequence in ("ModalityLUTSequence", "VOILUTSequence"):
        data = make_dicom(ramp(12), BitsStored=12, **{sequence: table})
        assert np.array_equal(read_grey(data), looked_up >> 4)
    kept = read(make_dicom(ramp(12), BitsStored=12, VOILUTSequence=table), PixelRule("raw", in_chans=1))[..., 0]
    assert np.array_equal(kept, X)  # tables for the screen are for the screen
    negative = make_dicom(ramp(12), BitsStored=12, VOILUTSequence=make_table(-1000, entries, 16), **RESCALE)
    expected = entries[np.clip(X.astype(int) - 24, 0, 999)]
    assert np.array_equal(read_grey(negative), expected >> 4)  # said to be of 16 bits, of which 12 are used


def make_groups(slope: float, centre: float) -> dict[str, Any]:
    """Functional groups: a slope of all frames, a window of each of two."""
    shared, values = pydicom.Dataset(), pydicom.Dataset()
    values.RescaleSlope, values.RescaleIntercept = slope, 0
    shared.PixelValueTransformationSequence = [values]
    frames = []
    for number in range(2):
        frame, item = pydicom.Dataset(), pydicom.Dataset()
        item.WindowCenter, item.WindowWidth = centre + 100 * number, 101
        frame.FrameVOILUTSequence = [item]
        frames.append(frame)
    return {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}


@pytest.mark.parametrize("way", [*NATIVE, *COMPRESSED[:1], "jpeg-ls", "deflated frames"])
def test_frames_have_groups_of_their_own(way: str) -> None:
    frames = np.stack([ramp(12), ramp(12)[::-1]])
    data = make_dicom(frames, way, BitsStored=12, NumberOfFrames=2, **make_groups(2, 500.5), **window(1, 2))
    decoded = decode(data)
    assert decoded.several
    assert np.abs(np.asarray(decoded.pixels)[..., 0] - show(2 * X, 450, 550)).max() <= 0.51
    image = read_dicom(io.BytesIO(data), 10**6)
    assert (image.frames, image.width, image.height) == (2, 64, 64)
    with MEMORY.hold():
        values, samples = image.decode(1, PHOTOGRAPHS)
        assert np.array_equal(values[..., 0], 2 * X[::-1])
        assert samples.declared == (550, 650)
        with pytest.raises(DecodeError, match="frame 3 of a DICOM of 2"):
            image.decode(2, PHOTOGRAPHS)


def test_frames_of_single_bits_share_bytes() -> None:
    frames = np.random.default_rng(0).integers(0, 2, (3, 5, 7), np.uint8)
    data = make_dicom(frames, NumberOfFrames=3)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    file = io.BytesIO()
    dataset.save_as(file)
    image = read_dicom(io.BytesIO(file.getvalue()), 10**6)
    with MEMORY.hold():
        for number in range(3):
            assert np.array_equal(image.decode(number, PHOTOGRAPHS)[0][..., 0], frames[number])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("top", [11, 13, 15])
def test_bits_beside_the_stored_ones_are_left_out(top: int, signed: bool) -> None:
    values = ramp(12, signed)
    noise = np.random.default_rng(0).integers(0, 2**16, values.shape, np.uint16)
    place = np.uint16(0xFFF << (top - 11))
    words = ((values.astype(np.uint16) << (top - 11)) & place) | (noise & ~place)
    data = make_dicom(words.astype(values.dtype), BitsStored=12, HighBit=top)
    assert np.array_equal(read(data), read(make_dicom(values, BitsStored=12)))


@pytest.mark.parametrize(
    ("elements", "values", "missing"),
    [
        ({"PixelPaddingValue": 0}, X, X == 0),
        ({"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}, X, X >= 4000),
        ({"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}, 4095 - X, X == 0),
        ({"PixelPaddingValue": 0} | window(2000, 4000), show(X, 0, 3999) / 255 * 4095, X == 0),
    ],
)
def test_padding_is_black_and_told(elements: dict[str, Any], values: np.ndarray, missing: np.ndarray) -> None:
    data = make_dicom(ramp(12), BitsStored=12, **elements)
    decoded = decode(data)
    assert decoded.missing
    expected = np.where(missing, 0, values * 255 / 4095)
    assert np.abs(np.asarray(decoded.pixels)[..., 0] - expected).max() <= 0.51
    assert np.isnan(read(data, PixelRule("raw", in_chans=1))[..., 0][missing]).all()


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(
    ("space", "way"),
    [
        *((space, way) for space in ("RGB", "YBR_FULL") for way in (*NATIVE, "rle", "jpeg-ls", "jpeg 2000")),
        ("RGB", "jpeg, lossless"),
        ("YBR_FULL_422", "jpeg"),
    ],
)
def test_colours(space: str, way: str, planar: int, photographs: list[Image.Image]) -> None:
    photo = photographs[1].crop((0, 0, 63, 41))
    pixels = np.asarray(photo.convert("YCbCr") if space == "YBR_FULL" else photo)
    data = make_dicom(pixels, way, PhotometricInterpretation=space, PlanarConfiguration=planar)
    difference = np.abs(read(data).astype(int) - np.asarray(photo))
    assert difference.max() <= {"RGB": 0, "YBR_FULL": 3, "YBR_FULL_422": 60}[space]  # a sharp edge whose colours are halved
    assert difference.mean() < 3


@pytest.mark.parametrize("of_slide", [False, True])
def test_colour_profiles(of_slide: bool, photographs: list[Image.Image]) -> None:
    pixels = np.asarray(photographs[1].crop((0, 0, 63, 41)))
    profile, path = make_rgb_profile("swapped"), pydicom.Dataset()
    path.ICCProfile = profile + b"\0" * (len(profile) % 2)
    data = make_dicom(pixels, **({"OpticalPathSequence": [path]} if of_slide else {"ICCProfile": path.ICCProfile}))
    assert np.abs(read(data) - convert_by_hand(pixels, "swapped")).max() <= 2
    assert np.array_equal(read(data, PixelRule(icc="ignore")), pixels)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("segmented", [False, True])
def test_palettes(first: int, segmented: bool, signed: bool) -> None:
    count = 1000
    ways = [np.linspace(0, 65535, count).round(), np.linspace(65535, 0, count).round(), np.full(count, 4660)]
    first = first - 100 if signed else first
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in zip(("Red", "Green", "Blue"), ways, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [count, first, 16]
        words = np.array([0, 1, entries[0], 1, count - 1, entries[-1]]) if segmented else entries
        elements[f"{'Segmented' * segmented}{colour}PaletteColorLookupTableData"] = words.astype("<u2").tobytes()
    numbers = ramp(16, signed)
    table = np.stack(ways, 1).astype(int) >> 8
    expected = table[np.clip(numbers.astype(int) - first, 0, count - 1)]
    data = make_dicom(numbers, **elements)
    for rule in (PHOTOGRAPHS, PixelRule("dtype")):
        assert np.array_equal(read(data, rule), expected)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_need_a_range(dtype: str) -> None:
    values = np.linspace(-3, 7, 64 * 64).reshape(64, 64).astype(dtype)
    data = make_dicom(values)
    with pytest.raises(UnknownRange, match="floating-point .*values from -3 to 7"):
        decode(data)
    assert np.abs(read_grey(data, PixelRule("-3:7")) - show(values, -3, 7)).max() <= 0.51


@pytest.mark.parametrize(
    ("pixels", "elements", "reason"),
    [
        (ramp(12).astype(np.uint16), {}, "16-bit samples of at most 4,095"),
        (ramp(8).astype(np.int16), {"BitsStored": 12}, "signed 16-bit values from 0 to 255"),
        (ramp(12), {"RescaleIntercept": -1024, "RescaleSlope": 1}, "values from -1024 to 3071"),
        (ramp(12).astype(np.uint32), {}, "unsigned 32-bit values from 0 to 4095"),
    ],
)
def test_darkness_is_not_read_in_silence(pixels: np.ndarray, elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnknownRange, match=f"{reason}.*--range"):
        decode(make_dicom(pixels, **elements))


def shorten(data: bytes) -> bytes:
    return data[:-100]


def double_width(data: bytes) -> bytes:
    """Say that a compressed frame is twice as wide as it is."""
    return data.replace(b"\x28\x00\x11\x00US\x02\x00\x10\x00", b"\x28\x00\x11\x00US\x02\x00\x20\x00")


@pytest.mark.parametrize("way", ["explicit", "rle", "jpeg", "jpeg-ls", "jpeg, lossless", "jpeg 2000", "deflated frames"])
@pytest.mark.parametrize("damage", [shorten, double_width])
def test_damage_is_an_error(way: str, damage: Callable[[bytes], bytes]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16), np.uint8)
    with pytest.raises(DecodeError):
        read(damage(make_dicom(pixels, way)))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation is none of MONOCHROME1"),
        ({"PhotometricInterpretation": "YBR_RCT"}, "photometric interpretation is none of"),
        ({"PhotometricInterpretation": "RGB"}, "1 samples a pixel in a DICOM of RGB"),
        ({"BitsAllocated": 12}, "12 bits stored in 12|16 bits stored in 12"),
        ({"BitsStored": 17, "HighBit": 15}, "17 bits stored in 16"),
        ({"Rows": 0}, "0 pixels|64×0"),
        ({"Rows": 65000, "Columns": 65000}, "65000×65000 pixels are more than the limit of"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "rescaled by 0 and 1"),
        ({"VOILUTFunction": "LOG"} | window(1, 2), "window is none of LINEAR"),
        ({"NumberOfFrames": 2}, "frames|truncated"),
    ],
)
def test_what_has_no_meaning_is_refused(elements: dict[str, Any], reason: str) -> None:
    data = make_dicom(ramp(16))
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file)
    image = file.getvalue()
    with pytest.raises(DecodeError, match=reason):
        if "NumberOfFrames" in elements:
            with MEMORY.hold():
                read_dicom(io.BytesIO(image), 10**9).decode(1, PHOTOGRAPHS)
        else:
            decode(image)


KINDS: dict[str, bytes] = {
    "8 bits": make_dicom(ramp(8).repeat(8, 0).repeat(8, 1)),
    "CT": make_dicom(ramp(12).repeat(2, 0).repeat(2, 1), "jpeg-ls", BitsStored=12, **RESCALE, **window(40, 400)),
    "inverted": make_dicom(ramp(12).repeat(2, 0).repeat(2, 1), "rle", BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
    "colours": make_dicom(np.stack([ramp(16)[:128, :128]] * 3, 2), "jpeg 2000"),
    "unknown": make_dicom(ramp(12).repeat(2, 0).repeat(2, 1).astype(np.int32)),
    "no pixels": (PYDICOM / "rtplan.dcm").read_bytes(),
}


@pytest.mark.parametrize("rule", [PHOTOGRAPHS, PixelRule("-160:240"), FLOATS], ids=["auto", "range", "floats"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_gives_equal_pixels_or_the_same_refusal(tmp_path: Path, kind: str, rule: PixelRule) -> None:
    (tmp_path / "image.dcm").write_bytes(KINDS[kind])

    def open_tiles() -> np.ndarray:
        rows: dict[int, list[np.ndarray]] = {}
        source = TiledSource(open_source(str(tmp_path)), 64)
        for item in source.items(0, source.length or 0):
            decoded = item.decode("pillow", rule=rule)
            assert decoded is not None
            rows.setdefault(decoded.y or 0, []).append(to_array(decoded.pixels))
        return np.concatenate([np.concatenate(row, 1) for row in rows.values()])

    def to_array(pixels: Any) -> np.ndarray:
        return np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()

    ways: list[Callable[[], np.ndarray]] = [
        *(
            lambda decoder=decoder: to_array(decode(KINDS[kind], decoder, rule=rule).pixels)
            for decoder in ("pillow", "torchvision")
        ),
        lambda: to_array(open_image(tmp_path / "image.dcm", rule=rule)),
        open_tiles,
    ]
    outcomes: list[Any] = []
    for way in ways:
        try:
            outcomes.append(way())
        except (DecodeError, UnknownRange) as error:
            outcomes.append(str(error))
    assert all(np.array_equal(outcome, outcomes[0]) for outcome in outcomes[1:])
    refused = kind == "no pixels" or (kind == "unknown" and rule.range == "auto")
    assert isinstance(outcomes[0], str) == refused
