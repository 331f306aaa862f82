"""Regions of TIFFs hold the pixels that the whole image has, whatever its layout; damage and lies stay where they are."""

import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images.decode import decode_image
from densefeat.images.slides import ByteCache, NotByRegion, Slide, open_slide

BOXES = [(0, 0, 70, 50), (0, 0, 32, 32), (31, 17, 35, 32), (69, 49, 1, 1), (38, 18, 32, 32), (0, 33, 70, 3)]  # x, y, w, h
TILED = {"tile": (32, 16)}


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> np.ndarray:
    """(50, 70, 3): no multiple of any tile."""
    return np.asarray(photographs[2].crop((100, 100, 170, 150)))


def written(path: Path, pixels: np.ndarray, **options: Any) -> Slide:
    tifffile.imwrite(path, pixels, **options)
    return opened(path)


def opened(path: Path, max_pixels: int = 10**6) -> Slide:
    return open_slide(partial(open, path, "rb"), path.name, max_pixels)


def region(slide: Slide, *box: int) -> np.ndarray:
    pixels = slide.region(*box, ByteCache(10**6))
    assert pixels.dtype == np.uint8
    return pixels


def assert_equal_everywhere(slide: Slide, pixels: np.ndarray) -> None:
    assert (slide.height, slide.width) == pixels.shape[:2]
    for x, y, width, height in BOXES:
        assert np.array_equal(region(slide, x, y, width, height), pixels[y : y + height, x : x + width])


@pytest.mark.parametrize(
    "options",
    [
        TILED,
        {"tile": (256, 256)},  # larger than the image
        TILED | {"bigtiff": True},
        TILED | {"byteorder": ">"},
        TILED | {"compression": "zlib"},
        TILED | {"compression": "lzw", "predictor": True},
        TILED | {"compression": "packbits"},
        TILED | {"compression": "zstd"},
        TILED | {"compression": "jpeg2000"},
        TILED | {"compression": "APERIO_JP2000_RGB"},
        TILED | {"compression": "zlib", "planarconfig": "separate"},
        {"planarconfig": "separate"},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"rowsperstrip": 7, "compression": "zlib", "planarconfig": "separate"},
        {},  # one strip
        {"compression": "zlib", "rowsperstrip": 50},
    ],
    ids=str,
)
def test_layouts(options: dict[str, Any], photo: np.ndarray, tmp_path: Path) -> None:
    planes = photo.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else photo
    slide = written(tmp_path / "a.tif", planes, photometric="rgb", **options)
    assert_equal_everywhere(slide, photo)


def samples(kind: str, photo: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    grey = photo[..., 1]
    low = np.random.default_rng(0).integers(0, 256, photo.shape, dtype=np.uint16)
    ramp = np.broadcast_to(np.linspace(0, 255, 70).astype(np.uint8), grey.shape)[..., None]
    return {
        "grey": (grey, {}),
        "white is zero": (grey, {"photometric": "miniswhite"}),
        "grey of 16 bits": (grey * np.uint16(256) + low[..., 0], {}),
        "grey of 16 bits, compressed": (grey * np.uint16(256) + low[..., 0], {"compression": "zlib", "predictor": True}),
        "colours of 16 bits": (photo * np.uint16(256) + low, {"photometric": "rgb"}),
        "palette": (grey, {"photometric": "palette", "colormap": low[:3].T[..., :3].reshape(3, -1)[:, :150].repeat(2, 1)[:, :256]}),
        "transparent": (np.concatenate([photo, ramp], 2), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "premultiplied": (
            np.concatenate([(photo * (ramp / 255)).astype(np.uint8), ramp], 2),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        ),
        "transparent grey": (np.concatenate([grey[..., None], ramp], 2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
        "infrared beside": (np.concatenate([photo, ramp], 2), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    }[kind]  # fmt: skip


KINDS = [
    "grey", "white is zero", "grey of 16 bits", "grey of 16 bits, compressed", "colours of 16 bits", "palette", "transparent",
    "premultiplied", "transparent grey", "infrared beside",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [TILED, {"rowsperstrip": 9}, {}], ids=["tiled", "strips", "one strip"])
def test_pixels_are_those_of_the_image_decoded_whole(
    kind: str, layout: dict[str, Any], photo: np.ndarray, tmp_path: Path
) -> None:
    pixels, options = samples(kind, photo)
    path = tmp_path / "a.tif"
    slide = written(path, pixels, **layout, **options)
    assert_equal_everywhere(slide, np.asarray(decode_image(path.read_bytes())))


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": (1, 1)}, {"photometric": "rgb", "compressionargs": {"outcolorspace": "rgb"}}]
)
def test_jpeg(options: dict[str, Any], photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    slide = written(path, photo, **({"photometric": "rgb"} | options), tile=(32, 32), compression="jpeg")
    whole = tifffile.imread(path)
    assert_equal_everywhere(slide, whole)
    assert np.abs(whole.astype(int) - photo).mean() < 3


def test_grey_jpeg_in_strips(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    slide = written(path, photo[..., 0], rowsperstrip=16, compression="jpeg")
    assert_equal_everywhere(slide, np.asarray(decode_image(path.read_bytes())))


def test_aperio_ycbcr(photo: np.ndarray, tmp_path: Path) -> None:
    ycbcr = np.asarray(Image.fromarray(photo).convert("YCbCr"))
    slide = written(tmp_path / "a.svs", ycbcr, **TILED, photometric="rgb", compression="APERIO_JP2000_YCBC")
    assert_equal_everywhere(slide, np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_of_turned_images(orientation: int, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    slide = written(path, photo[:40], rowsperstrip=11, extratags=[(274, "H", 1, orientation, True)])
    upright = np.asarray(decode_image(path.read_bytes()))
    assert (slide.width, slide.height) == ((40, 70) if orientation > 4 else (70, 40))
    for x, y, width, height in [(0, 0, slide.width, slide.height), (3, 5, 20, 11), (slide.width - 9, slide.height - 2, 9, 2)]:
        assert np.array_equal(region(slide, x, y, width, height), upright[y : y + height, x : x + width])


def test_only_the_segments_of_a_region_are_read_and_only_once(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, **TILED, compression="zlib")
    times = 0

    def count_and_open() -> BinaryIO:
        nonlocal times
        times += 1
        return open(path, "rb")

    slide = open_slide(count_and_open, "a")
    cache: ByteCache[np.ndarray] = ByteCache(10**6)
    times = 0
    slide.region(16, 0, 16, 32, cache)
    assert times == 1
    slide.region(16, 0, 17, 33, cache)
    assert times == 4
    slide.region(16, 0, 32, 50, cache)
    assert times == 4
    slide.region(0, 0, 70, 50, ByteCache(1))  # a cache for none but the last
    assert times == 4 + 2 * 5


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "jpeg", "jpeg2000", None])
def test_damage_loses_only_the_regions_that_touch_it(compression: str | None, photo: np.ndarray, tmp_path: Path) -> None:
    """Segment 6 (second row, second column) is cut in half."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, tile=(32, 16), compression=compression, photometric="rgb")
    before = opened(path).region(0, 0, 70, 32, ByteCache(1))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = list(tiff.pages.first.databytecounts)
        counts[6] //= 2
        tiff.pages.first.tags["TileByteCounts"].overwrite(counts)
    slide = opened(path)
    for box in [(16, 32, 16, 18), (31, 31, 2, 2), (0, 0, 70, 50)]:
        with pytest.raises(DecodeError, match="^segment 6: .") as caught:
            region(slide, *box)
        assert caught.value.stage == "decode"
    assert np.array_equal(region(slide, 0, 0, 70, 32), before)
    region(slide, 32, 32, 38, 18)


def test_a_file_that_ends_early(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    slide = written(path, photo, **TILED)
    path.write_bytes(path.read_bytes()[:-10])
    region(slide, 0, 0, 64, 50)
    with pytest.raises(DecodeError, match="segment 9: the file ends inside it") as caught:
        region(slide, 60, 40, 10, 10)
    assert caught.value.stage == "read"
    path.unlink()
    with pytest.raises(DecodeError, match="No such file") as caught:
        region(slide, 0, 0, 10, 10)
    assert caught.value.stage == "read"


def change(path: Path, **tags: Any) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages.first.tags[name].overwrite(value, dtype="I" if isinstance(value, list) else None)


def test_segments_without_bytes_are_white(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, **TILED)
    change(path, TileByteCounts=[0] + [32 * 16 * 3] * 9)
    pixels = region(opened(path), 0, 0, 70, 50)
    assert (pixels[:32, :16] == 255).all()
    assert np.array_equal(pixels[:, 16:], photo[:, 16:])


def test_a_plane_without_bytes(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo.transpose(2, 0, 1), **TILED, photometric="rgb", planarconfig="separate")
    change(path, TileByteCounts=[0] + [32 * 16] * 29)
    with pytest.raises(DecodeError, match="segment 0: 0 bytes for 512 bytes of pixels"):
        region(opened(path), 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("options", "tags", "match"),
    [
        ({"rowsperstrip": 50, "compression": "zlib"}, {"ImageWidth": 100_000, "ImageLength": 100_000, "RowsPerStrip": 100_000}, "100000×100000 pixels are too large"),
        ({}, {"ImageWidth": 100_000, "ImageLength": 100_000, "RowsPerStrip": 100_000}, "100000×100000 pixels are too large"),
        (TILED, {"TileWidth": 64_000, "TileLength": 64_000}, "64000×64000 pixels are too large"),
        (TILED, {"ImageWidth": 60_000}, "10 segments where 7500 are needed"),
        (TILED, {"ImageWidth": 0}, "0×50 pixels"),
        (TILED, {"TileWidth": 0}, "segments of 70×0 pixels"),
        (TILED, {"Compression": 34925}, "LZMA is not read by region"),
        (TILED, {"PhotometricInterpretation": 6}, "YCbCr without JPEG"),
        (TILED, {"PhotometricInterpretation": 5}, "SEPARATED, 0 of them extra"),
        (TILED, {"PhotometricInterpretation": 1}, "3 samples a pixel as MINISBLACK, 0 of them extra"),
        (TILED, {"PhotometricInterpretation": 77}, "3 samples a pixel as 77"),
    ],
)  # fmt: skip
def test_impossible_headers(options: dict, tags: dict, match: str, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, photometric="rgb", **options)
    change(path, **tags)
    with pytest.raises(DecodeError, match=match):
        opened(path)


@pytest.mark.parametrize(
    ("pixels", "options", "match"),
    [
        (np.zeros((40, 40), np.float32), {}, "samples of float32"),
        (np.zeros((40, 40), np.int16), {}, "samples of int16"),
        (np.zeros((40, 40), np.uint32), {}, "samples of uint32"),
        (np.zeros((40, 40), bool), {}, "samples of bool"),
        (np.zeros((40, 40, 4), np.uint8), {"photometric": "separated"}, "4 samples a pixel as SEPARATED"),
        (np.zeros((40, 40, 4), np.uint8), {"photometric": "rgb", "compression": "jpeg2000", "extrasamples": ["unassalpha"]}, "1 of them extra"),
        (np.zeros((16, 48, 48), np.uint8), {"volumetric": True, "tile": (16, 16, 16)}, "volumes"),
    ],
)  # fmt: skip
def test_kinds_that_are_not_read_by_region(pixels: np.ndarray, options: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(NotByRegion, match=match):
        written(tmp_path / "a.tif", pixels, **options)


@pytest.mark.parametrize(
    ("compression", "segment", "match"),
    [
        ("jpeg", imagecodecs.jpeg_encode(np.zeros((2000, 2000, 3), np.uint8)), "2000×2000 pixels in place of 16×32"),
        ("jpeg", imagecodecs.jpeg_encode(np.zeros((32, 8, 3), np.uint8)), "corrupted"),
        ("jpeg", b"\xff\xd8garbage\xff\xd9", "segment 0"),
        ("jpeg2000", imagecodecs.jpeg2k_encode(np.zeros((2000, 2000, 3), np.uint8), codecformat="j2k"), "2000×2000 pixels in place of 16×32"),
        ("jpeg2000", imagecodecs.jpeg2k_encode(np.zeros((32, 8, 3), np.uint8), codecformat="j2k"), "fewer than its 16×32 pixels"),
        ("zlib", zlib.compress(bytes(10**8)), "segment 0"),
        ("zstd", imagecodecs.zstd_encode(bytes(10**8)), "segment 0"),
        ("zlib", bytes(10**6), "1,000,000 bytes for 1,536 bytes of pixels"),
    ],
)  # fmt: skip
def test_segments_with_other_content(compression: str, segment: bytes, match: str, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, **TILED, compression=compression, photometric="rgb")
    offset = path.stat().st_size
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = list(tiff.pages.first.dataoffsets), list(tiff.pages.first.databytecounts)
    with path.open("ab") as file:
        file.write(segment)
    change(path, TileOffsets=[offset, *offsets[1:]], TileByteCounts=[len(segment), *counts[1:]])
    with pytest.raises(DecodeError, match=match):
        region(opened(path), 0, 0, 10, 10)


def test_truncated_headers(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, **TILED)
    data = path.read_bytes()
    for size in range(0, 400, 7):
        path.write_bytes(data[:size])
        with pytest.raises(DecodeError):
            region(opened(path), 0, 0, 70, 50)


def test_without_tifffile(photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", photo, **TILED)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(NotByRegion, match="pip install tifffile imagecodecs"):
        opened(tmp_path / "a.tif")


HUGE = """
import resource, sys
from functools import partial
import numpy as np
from densefeat.images.slides import ByteCache, open_slide

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

slide = open_slide(partial(open, sys.argv[1], "rb"), "huge")
cache = ByteCache(2**25)
slide.region(0, 0, 1, 1, cache)
before = peak()
assert (slide.width, slide.height) == (30_000, 30_000)
for y in (0, 14_990, 29_776):
    row = [slide.region(x, y, 224, 224, cache) for x in (*range(0, 29_776, 224), 29_776)]
    assert {tuple(tile[0, 0]) for tile in row} == {(200, 100, 50)}
assert cache.size <= 2**25
print(peak() - before)
"""


def test_an_image_far_larger_than_its_memory(tmp_path: Path) -> None:
    """2.7 GB of pixels: what is read of them stays below a fortieth."""
    tile = zlib.compress(np.broadcast_to(np.uint8([200, 100, 50]), (512, 512, 3)).tobytes(), 1)
    path = tmp_path / "huge.tif"
    shape = (30_000, 30_000, 3)
    tifffile.imwrite(
        path,
        (tile for _ in range(59 * 59)),
        shape=shape,
        dtype=np.uint8,
        tile=(512, 512),
        compression="zlib",
        photometric="rgb",
    )
    run = subprocess.run([sys.executable, "-c", HUGE, str(path)], capture_output=True, text=True, timeout=120)
    assert not run.stderr
    assert int(run.stdout) < 2_700_000_000 / 40


class Bytes:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def counted(computed: list[Any], key: Any, nbytes: int) -> Callable[[], Bytes]:
    def make() -> Bytes:
        computed.append(key)
        return Bytes(nbytes)

    return make


def test_the_cache_is_bounded_but_keeps_the_newest() -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed: list[str] = []
    for key in "abacab":
        cache.get(key, counted(computed, key, 40))
    assert computed == ["a", "b", "c", "b"]  # a was used more recently than b when c came
    assert cache.size == 80
    cache.get("huge", counted(computed, "huge", 1000))
    cache.get("huge", counted(computed, "huge", 1000))
    assert computed[-1] == "huge"
    assert computed.count("huge") == 1
    assert cache.size == 1000
    cache.get("a", counted(computed, "a", 40))
    assert cache.size == 40


def test_threads_compute_a_value_once() -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed: list[str] = []
    together = threading.Barrier(8)

    def make() -> Bytes:
        time.sleep(0.05)
        computed.append("a")
        return Bytes(1)

    def get(_: int) -> Bytes:
        together.wait()
        return cache.get("a", make)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(get, range(8)))
    assert computed == ["a"]
    assert all(value is values[0] for value in values)


@pytest.mark.parametrize(("stage", "times"), [("decode", 1), ("read", 2)])
def test_failures_to_decode_are_cached(stage: str, times: int) -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed = []

    def fail() -> Bytes:
        computed.append(1)
        raise DecodeError("broken", stage)

    for _ in range(2):
        with pytest.raises(DecodeError, match="broken") as caught:
            cache.get("a", fail)
        assert caught.value.stage == stage
    assert len(computed) == times
