"""Regions of TIFFs hold the pixels that the whole image has, whatever its layout; damage and lies stay where they are."""

import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images.byte_cache import ByteCache
from densefeat.images.decode import decode_image
from densefeat.images.tiff import open_tiff
from support.tiffs import TILED, assert_equal_everywhere, change, crop_photo, opened, region, written


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> np.ndarray:
    return crop_photo(photographs)


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


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("inverted", [False, True])
def test_fax(compression: str, inverted: bool, photo: np.ndarray, tmp_path: Path) -> None:
    bits = photo[..., 1] > 99
    tags = {262: 0} if inverted else {262: 1}
    Image.fromarray(bits).save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
    pixels = np.repeat(bits[..., None], 3, 2) * np.uint8(255)
    assert_equal_everywhere(opened(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")))
    assert np.array_equal(np.asarray(decode_image((tmp_path / "a.tif").read_bytes())), pixels)


def test_webp_without_loss(photo: np.ndarray, tmp_path: Path) -> None:
    slide = written(
        tmp_path / "a.tif", photo, **TILED, photometric="rgb", compression="webp", compressionargs={"lossless": True}
    )
    assert_equal_everywhere(slide, photo)


@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 16}, {"rowsperstrip": 50}], ids=str)
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("compression", [1, 8])
def test_ycbcr_without_jpeg(
    layout: dict, subsampling: tuple[int, int], compression: int, photo: np.ndarray, tmp_path: Path
) -> None:
    """Blocks of pixels that share their colour, written by hand: no writer of Python makes them."""
    across, down = subsampling
    photo = np.asarray(
        Image.fromarray(photo).resize((-(-70 // across), -(-50 // down))).resize((70, 50), Image.Resampling.NEAREST)
    )
    ycbcr = np.asarray(Image.fromarray(photo).convert("YCbCr"))
    height, width = layout.get("tile", (layout.get("rowsperstrip"), 70))
    segments = []
    for top in range(0, 50, height):
        for left in range(0, 70, width):
            rows = height if "tile" in layout else min(height, 50 - top)
            block = ycbcr[top : top + rows, left : left + width]
            padding = -(-rows // down) * down - block.shape[0], -(-width // across) * across - block.shape[1], 0
            block = np.pad(block, [(0, n) for n in padding], "edge")
            segments.append(b"".join(
                block[y : y + down, x : x + across, 0].tobytes() + block[y, x, 1:].tobytes()
                for y in range(0, block.shape[0], down) for x in range(0, block.shape[1], across)
            ))  # fmt: skip
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ycbcr, **layout, photometric="ycbcr", metadata=None)
    start = path.stat().st_size
    data = [zlib.compress(segment) if compression == 8 else segment for segment in segments]
    with path.open("ab") as file:
        file.write(b"".join(data))
    offsets = [start + sum(map(len, data[:i])) for i in range(len(data))]
    prefix = "Tile" if "tile" in layout else "Strip"
    tags = {f"{prefix}Offsets": offsets, f"{prefix}ByteCounts": [len(one) for one in data]}
    change(
        path,
        **{name: value if len(value) > 1 else value[0] for name, value in tags.items()},
        Compression=compression,
        YCbCrSubSampling=subsampling,
    )
    slide = opened(path)
    whole = region(slide, 0, 0, 70, 50)
    assert np.abs(whole.astype(int)[..., 1] - photo[..., 1]).mean() < 6
    colours = ycbcr.copy()
    colours[..., 1:] = ycbcr[::down, ::across, 1:].repeat(down, 0).repeat(across, 1)[:50, :70]
    assert_equal_everywhere(slide, np.asarray(Image.fromarray(colours, "YCbCr").convert("RGB")))


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

    slide = open_tiff(count_and_open, "a")
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
    with pytest.raises(DecodeError, match="segment 9: truncated: the file ends inside it") as caught:
        region(slide, 60, 40, 10, 10)
    assert caught.value.stage == "decode"
    path.unlink()
    with pytest.raises(DecodeError, match="No such file") as caught:
        region(slide, 0, 0, 10, 10)
    assert caught.value.stage == "read"


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
        ({"rowsperstrip": 50, "compression": "zlib"}, {"ImageWidth": 100_000, "ImageLength": 100_000, "RowsPerStrip": 100_000}, "100000×100000 pixels are more than the limit of 1,000,000 .--max-pixels"),
        ({}, {"ImageWidth": 100_000, "ImageLength": 100_000, "RowsPerStrip": 100_000}, "100000×100000 pixels are more than the limit of 1,000,000 .--max-pixels"),
        (TILED, {"TileWidth": 64_000, "TileLength": 64_000}, "64000×64000 pixels are more than the limit"),
        (TILED, {"ImageWidth": 60_000}, "10 segments where 7500 are needed"),
        (TILED, {"ImageWidth": 0}, "0×50 pixels"),
        (TILED, {"TileByteCounts": [0] * 10}, "none of the segments has any bytes"),
        ({}, {"StripByteCounts": 0}, "none of the segments has any bytes"),
        (TILED, {"TileWidth": 0}, "segments of 70×0 pixels"),
        (TILED, {"Compression": 34887}, "TIFF with compression LERC: read are none, CCITT RLE"),
        (TILED, {"Compression": 77}, "TIFF with compression 77: read are none, CCITT RLE"),
        (TILED, {"PhotometricInterpretation": 5}, "3 samples a pixel where 4 are needed"),
        (TILED, {"PhotometricInterpretation": 77}, "TIFF with colours 77: convert to RGB"),
    ],
)  # fmt: skip
def test_impossible_headers(options: dict, tags: dict, match: str, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, photometric="rgb", **options)
    change(path, **tags)
    with pytest.raises(DecodeError, match=match):
        opened(path)
    with pytest.raises(DecodeError, match=match):
        decode_image(path.read_bytes(), 10**6)


def test_raw_files_of_cameras(photo: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(photo[:16, :24], subfiletype=1, subifds=1, metadata=None)
        writer.write(photo[..., 0], photometric="cfa", metadata=None)
    with pytest.raises(DecodeError, match="a thumbnail and its image in subfiles"):
        opened(tmp_path / "a.tif")


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


def test_the_first_page_that_is_no_smaller_copy(photo: np.ndarray, tmp_path: Path) -> None:
    """The image, whether others are said, and which pages the file has: (pixels, subfile type)."""
    small, half, turned = photo[:16, :24], photo[::2, ::2], photo[::-1]
    cases = [
        ([(photo, 0)], photo, False),
        ([(small, 1), (photo, 0)], photo, False),
        ([(photo[..., 0] > 99, 4), (photo, 0)], photo, False),
        ([(photo, 0), (half, 1), (small, 1)], photo, False),
        ([(photo, 0), (half, 0), (small, 0)], photo, False),  # a pyramid whose levels are not marked
        ([(photo, 0), (turned, 0), (photo, 0)], photo, True),
        ([(small, 1), (photo, 0), (turned, 0)], photo, True),
        ([(photo, 2), (turned, 2)], photo, True),  # "page of a document"
        ([(small, 1)], small, False),
    ]
    for number, (pages, pixels, several) in enumerate(cases):
        path = tmp_path / f"{number}.tif"
        with tifffile.TiffWriter(path) as writer:
            for page, kind in pages:
                writer.write(page, subfiletype=kind, metadata=None)
        image = open_tiff(partial(open, path, "rb"), path.name)
        assert image.several == several, pages
        assert np.array_equal(region(image, 0, 0, *pixels.shape[1::-1]), pixels)
        assert np.array_equal(np.asarray(decode_image(path.read_bytes())), pixels)


def test_stacks_of_imagej_are_several_images(photo: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([photo[..., 0]] * 3), imagej=True, metadata={"axes": "TYX"})
    assert opened(tmp_path / "a.tif").several


HUGE = """
import resource, sys
from functools import partial
from itertools import product
import numpy as np
from densefeat.images.byte_cache import ByteCache
from densefeat.images.tiff import open_tiff

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

slide = open_tiff(partial(open, sys.argv[1], "rb"), "huge")
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


def test_many_tiny_strips_fail(tmp_path: Path) -> None:
    """Decoding each costs more than its pixels do: a file of megabytes would take minutes."""
    pixels = np.zeros((2**16 + 1, 255), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=1, compression="packbits", photometric="minisblack")
    with pytest.raises(DecodeError, match="65,537 strips or tiles of fewer than 256 pixels: write it with larger ones"):
        opened(tmp_path / "a.tif", 10**9)
    tifffile.imwrite(tmp_path / "a.tif", pixels[:-1], rowsperstrip=1, compression="packbits", photometric="minisblack")
    assert opened(tmp_path / "a.tif", 10**9).height == 2**16
