"""Embedded colour profiles: pixels come out as numpy converts them by hand, whatever file holds them and however it is read."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images.decode import DecodedImage, decode, open_image
from densefeat.images.icc import MAX_PROFILE_BYTES, Profile, open_profile
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sources import open_source
from densefeat.images.tiles import TiledSource
from support.hostile import encode
from support.icc_profiles import (
    convert_by_hand,
    convert_cmyk_by_hand,
    convert_grey_by_hand,
    make_cmyk_profile,
    make_grey_profile,
    make_profile,
    make_rgb_profile,
)

IGNORE = PixelRule(icc="ignore")
PROFILES = {
    "Display P3": ("p3", None),
    "ProPhoto": ("prophoto", 1.8),
    "red and green exchanged": ("swapped", None),
    "linear light": ("srgb", 1.0),
}
SIDE = 64


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """Smooth colours of the whole cube: uint8 ``(SIDE, SIDE, 3)``."""
    y, x = np.mgrid[:SIDE, :SIDE] * (255 / (SIDE - 1))
    return np.rint(np.stack([x, y, (x + 255 - y) / 2], 2)).astype(np.uint8)


def write(pixels: np.ndarray, kind: str, profile: bytes | None) -> bytes:
    """Write pixels ``(h, w, 3)``, ``(h, w)`` or of CMYK ``(h, w, 4)`` with a profile."""
    if kind.startswith("tif"):
        file = io.BytesIO()
        photometric = {2: "minisblack", 3: "rgb"}[pixels.ndim] if pixels.shape[2:] != (4,) else "separated"
        options: dict[str, Any] = {"tif of tiles": {"tile": (16, 32)}, "tif of 16 bits": {}, "tif": {}}[kind]
        deep = pixels.astype(np.uint16) * 257 if kind == "tif of 16 bits" else pixels
        tifffile.imwrite(file, deep, photometric=photometric, iccprofile=profile, **options)
        return file.getvalue()
    image = Image.fromarray(pixels, "CMYK") if pixels.shape[2:] == (4,) else Image.fromarray(pixels)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return encode(image, kind, icc_profile=profile, **options)


def read_pixels(decoded: DecodedImage) -> np.ndarray:
    pixels = decoded.pixels
    return pixels.permute(1, 2, 0).numpy().astype(float) if isinstance(pixels, torch.Tensor) else np.asarray(pixels, float)


KINDS = ["JPEG", "PNG", "WEBP", "tif", "tif of tiles", "tif of 16 bits"]


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROFILES)
def test_colours_become_those_of_srgb(name: str, kind: str, decoder: str, colours: np.ndarray) -> None:
    space, gamma = PROFILES[name]
    data = write(colours, kind, make_rgb_profile(space, gamma))
    decoded, stored = decode(data, decoder), read_pixels(decode(data, decoder, rule=IGNORE))
    assert not decoded.bad_profile
    assert np.abs(stored - colours).mean() <= (1 if kind == "JPEG" else 0)
    difference = np.abs(read_pixels(decoded) - convert_by_hand(stored, space, gamma))
    assert difference.max() <= 2
    assert difference.mean() < 0.5
    if space == "swapped":
        assert np.array_equal(read_pixels(decoded), stored[..., [1, 0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_have_the_colours_of_the_whole_image(kind: str, colours: np.ndarray, tmp_path: Path) -> None:
    suffix = kind.split()[0].lower()
    (tmp_path / f"a.{suffix}").write_bytes(write(colours, kind, make_rgb_profile("swapped")))
    source = TiledSource(open_source(tmp_path), 32)
    whole = read_pixels(decode((tmp_path / f"a.{suffix}").read_bytes()))
    tiles = [item.decode() for item in source.items(0, 4)]
    assert len(tiles) == 4
    for tile in tiles:
        assert np.array_equal(read_pixels(tile), whole[tile.y : tile.y + 32, tile.x : tile.x + 32])
        assert not tile.bad_profile


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "WEBP"])  # which is never grey
@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_grey_curves(kind: str, gamma: float) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(4, 0)
    data = write(np.ascontiguousarray(grey), kind, make_grey_profile(gamma))
    for decoder in ("torchvision", "pillow"):
        decoded = decode(data, decoder)
        stored = read_pixels(decode(data, decoder, rule=IGNORE))
        found = read_pixels(decoded)
        assert np.abs(found - convert_grey_by_hand(stored, gamma)).max() <= 1
        assert np.ptp(found, axis=2).max() == 0


def test_an_rgb_profile_counts_for_grey_as_red_green_and_blue() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode(write(grey, "PNG", make_rgb_profile("p3", 1.0)))
    assert not decoded.bad_profile
    assert np.abs(read_pixels(decoded) - convert_grey_by_hand(grey[..., None], 1.0)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "tif", "tif of tiles"])
def test_ink_is_converted_by_its_profile(kind: str) -> None:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    inks = np.stack(np.meshgrid(levels, levels, [0, 85, 255], [0, 119], indexing="ij"), -1).reshape(32, -1, 4).astype(np.uint8)
    data = write(inks, kind, make_cmyk_profile())
    decoded = decode(data, "pillow")
    assert not decoded.bad_profile
    stored = inks if kind != "JPEG" else np.asarray(Image.open(io.BytesIO(data)))
    difference = np.abs(read_pixels(decoded) - convert_cmyk_by_hand(stored))
    assert difference.max() <= 4  # the conversion is precomputed at some points
    assert difference.mean() < 1
    assert np.abs(read_pixels(decode(data, rule=IGNORE)) - read_pixels(decoded)).mean() > 3


def test_transparent_colours_are_converted_before_they_lie_over_white(colours: np.ndarray) -> None:
    alpha = np.full((SIDE, SIDE, 1), 51, np.uint8)  # a fifth
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        image = Image.fromarray(np.concatenate([colours, alpha], 2))
        data = encode(image, kind, icc_profile=make_rgb_profile("p3", 1.0), **options)
        expected = 0.2 * convert_by_hand(colours, "p3", 1.0) + 0.8 * 255
        assert np.abs(read_pixels(decode(data)) - expected).max() <= 1


def test_palettes() -> None:
    table = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette(table.tobytes())
    file = io.BytesIO()
    tifffile.imwrite(
        file, numbers, photometric="palette", colormap=table.T.astype(np.uint16) * 257, iccprofile=make_rgb_profile("swapped")
    )
    for data in (encode(image, "PNG", icc_profile=make_rgb_profile("swapped")), file.getvalue()):
        assert np.array_equal(read_pixels(decode(data)), table[numbers][..., [1, 0, 2]])


def test_orientation_and_an_opened_image(colours: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(colours)
    image.save(tmp_path / "a.jpg", quality=100, exif=exif, icc_profile=make_rgb_profile("swapped"))
    upright = np.rot90(np.asarray(Image.open(tmp_path / "a.jpg")), -1)[..., [1, 0, 2]]
    for pixels in (open_image(tmp_path / "a.jpg", "pillow"), open_image(Image.open(tmp_path / "a.jpg"))):
        assert np.array_equal(np.asarray(pixels), upright)
    pixels = open_image(tmp_path / "a.jpg")
    assert isinstance(pixels, torch.Tensor)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - upright).max() <= 2


@pytest.mark.parametrize(
    "rule",
    [
        IGNORE,
        PixelRule(channels=("1", "2", "3")),
        PixelRule(range="0:255"),
        PixelRule(range="image:p0:p100"),
        PixelRule(nodata=256),
    ],
)
def test_measurements_stay_as_they_are_stored(rule: PixelRule, colours: np.ndarray) -> None:
    for kind in KINDS[1:-1]:
        decoded = decode(write(colours, kind, make_rgb_profile("swapped")), rule=rule)
        assert np.array_equal(read_pixels(decoded), colours)


def test_channels_of_floats_stay_as_they_are_stored(colours: np.ndarray) -> None:
    deep = colours.astype(np.uint16) * 257
    file = io.BytesIO()
    tifffile.imwrite(file, deep, photometric="rgb", iccprofile=make_rgb_profile("swapped"))
    raw = decode(file.getvalue(), rule=PixelRule(range="raw")).pixels
    assert np.array_equal(raw.permute(1, 2, 0).numpy(), deep.astype(np.float32))


CURVELESS = make_profile(b"RGB ", {})
BAD = {
    "text": b"no profile at all",
    "a header alone": make_rgb_profile("p3")[:128],
    "cut off": make_rgb_profile("p3")[:300],
    "without curves": CURVELESS,
    "of ink": make_cmyk_profile(),
    "of a grey image": make_grey_profile(2.2),
    "of Lab": make_profile(b"Lab ", {}, connection=b"Lab "),
    "a link between devices": make_rgb_profile("p3").replace(b"mntr", b"link"),
    "too large": make_rgb_profile("p3").ljust(MAX_PROFILE_BYTES + 1, b"\0"),
}


@pytest.mark.parametrize("name", BAD)
def test_with_a_profile_that_cannot_be_used_colours_stay_and_it_is_said(name: str, colours: np.ndarray) -> None:
    for kind in KINDS:
        data = write(colours, kind, BAD[name])
        for decoder in ("torchvision", "pillow"):
            decoded, stored = decode(data, decoder), decode(data, decoder, rule=IGNORE)
            assert decoded.bad_profile, kind
            assert not stored.bad_profile
            assert np.array_equal(read_pixels(decoded), read_pixels(stored))


def test_a_profile_of_light_on_an_image_of_ink_is_said() -> None:
    inks = np.full((8, 8, 4), 100, np.uint8)
    data = write(inks, "JPEG", make_rgb_profile("p3"))
    assert decode(data).bad_profile
    assert np.array_equal(read_pixels(decode(data)), read_pixels(decode(data, rule=IGNORE)))


def test_parts_of_a_profile_in_a_jpeg(colours: np.ndarray) -> None:
    """They may be in any order, but none may be missing."""
    profile = make_rgb_profile("swapped")
    plain = encode(Image.fromarray(colours), "JPEG", quality=100, subsampling=0)
    parts = [b"\xff\xe2" + struct.pack(">H", len(part) + 16) + b"ICC_PROFILE\0" + bytes([number, 3]) + part
             for number, part in enumerate((profile[:500], profile[500:900], profile[900:]), 1)]  # fmt: skip
    stored = read_pixels(decode(plain))
    for order in ((0, 1, 2), (2, 0, 1)):
        data = plain[:2] + b"".join(parts[i] for i in order) + plain[2:]
        assert np.array_equal(read_pixels(decode(data)), stored[..., [1, 0, 2]])
    for order in ((0, 1), (0, 1, 1), (1, 2, 2, 0), (0,) * 300):
        decoded = decode(plain[:2] + b"".join(parts[i] for i in order) + plain[2:])
        assert decoded.bad_profile
        assert np.array_equal(read_pixels(decoded), stored)


def test_a_chunk_of_a_png_that_unpacks_to_gigabytes(colours: np.ndarray) -> None:
    pack = zlib.compressobj(9)
    packed = b"".join(pack.compress(bytes(2**20)) for _ in range(800)) + pack.flush()
    chunk = b"iCCP" + b"bomb\0\0" + packed
    assert len(chunk) < 2**20
    data = write(colours, "PNG", None)
    data = data[:33] + struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk)) + data[33:]
    decoded = decode(data)
    assert decoded.bad_profile
    assert np.array_equal(read_pixels(decoded), colours)


def test_a_profile_that_is_nearly_srgb_leaves_pixels_alone(colours: np.ndarray) -> None:
    for data in (make_rgb_profile("srgb"), make_rgb_profile("srgb", None) + bytes(4)):
        profile = open_profile(data, "rgb", PHOTOGRAPHS)
        assert not profile.changes_colours
        assert not profile.bad
    assert not open_profile(make_rgb_profile("p3"), "grey", PHOTOGRAPHS).changes_colours  # its curve is that of sRGB
    assert open_profile(make_rgb_profile("srgb", 2.2), "rgb", PHOTOGRAPHS).changes_colours


def test_profiles_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from densefeat.images import icc

    made = []
    make = icc._make_profile

    def count(data: bytes, colours: str) -> Profile:
        made.append(colours)
        return make(data, colours)

    monkeypatch.setattr(icc, "_make_profile", count)
    data = make_rgb_profile("p3", 1.37)
    first = open_profile(data, "rgb", PHOTOGRAPHS)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: open_profile(bytes(bytearray(data)), "rgb", PHOTOGRAPHS) is first, range(20)))
    assert made == ["rgb"]


def test_threads_share_a_conversion() -> None:
    profile = open_profile(make_rgb_profile("prophoto", 1.8), "rgb", PHOTOGRAPHS)
    images = [np.random.default_rng(i).integers(0, 256, (300, 301, 3), np.uint8) for i in range(8)]
    expected = [profile.convert(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, right in zip(pool.map(profile.convert, images), expected, strict=True):
                assert np.array_equal(found, right)


def test_long_pipelines_are_not_run() -> None:
    """Processing elements may be as many as a file holds: these would be computed for every colour."""
    count = 50_000
    element = b"matf" + bytes(4) + struct.pack(">HH", 3, 3) + struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    table = struct.pack(">LL", 16 + 8 * count, len(element)) * count
    pipeline = b"mpet" + bytes(4) + struct.pack(">HHL", 3, 3, count) + table + element
    names = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    tags = split_tags(make_rgb_profile("swapped"))
    data = make_profile(b"RGB ", {b"D2B0": pipeline, b"D2B1": pipeline} | {name: tags[name] for name in names})
    data = data[:8] + b"\x04\x30\0\0" + data[12:]
    profile = open_profile(data, "rgb", PHOTOGRAPHS)
    assert profile.convert(np.array([[[200, 10, 30]]], np.uint8)).tolist() == [[[10, 200, 30]]]


def split_tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">L", profile, 128)
    entries = [struct.unpack_from(">4sLL", profile, 132 + 12 * i) for i in range(count)]
    return {name: profile[place : place + size] for name, place, size in entries}


def test_errors_of_pixels_stay_errors(colours: np.ndarray) -> None:
    data = write(colours, "PNG", make_rgb_profile("p3"))
    with pytest.raises(DecodeError, match="truncated"):
        decode(data[:-200])
