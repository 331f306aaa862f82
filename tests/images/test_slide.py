"""Squares of slides at a scale: from the copy that fits, and only from the pixels that are needed."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images.area import average_areas
from densefeat.images.byte_cache import ByteCache
from densefeat.images.pages import PagedSource
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.slide import Slide, open_slide
from densefeat.images.sources import open_source
from densefeat.images.tiles import TiledSource

APERIO = "Aperio Image Library v11.2.1\r\n600x400 (64x64) JPEG/RGB Q=30|AppMag = 20|MPP = {}|Left = 25.69"
NONE: dict[str, Any] = {"resolution": (72, 72), "resolutionunit": "inch"}  # what programs write that know no better
TILED: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}


@pytest.fixture(scope="module")
def scan(photographs: list[Image.Image]) -> np.ndarray:
    """(400, 600, 3): no multiple of any tile."""
    return np.asarray(photographs[0].crop((0, 0, 600, 400)))


def halve(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def write_svs(path: Path, scan: np.ndarray, mpp: float = 0.25) -> None:
    """A slide as Aperio's scanners lay it out: thumbnail after the image, levels that are not marked, label and macro."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(scan, description=APERIO.format(mpp), **TILED, **NONE)
        writer.write(255 - halve(scan, 5), photometric="rgb", metadata=None, description="Aperio\r\n600x400 -> 120x80 -")
        writer.write(halve(scan, 2), **TILED, description="Aperio\r\n600x400 (64x64) -> 300x200")
        writer.write(halve(scan, 4), **TILED, description="Aperio\r\n600x400 (64x64) -> 150x100")
        writer.write(
            255 - scan[:300:2, :100], photometric="rgb", metadata=None, subfiletype=1, description="Aperio\r\nlabel 100x150"
        )
        writer.write(
            255 - halve(scan, 4), photometric="rgb", metadata=None, subfiletype=9, description="Aperio\r\nmacro 150x100"
        )


def write_levels(path: Path, scan: np.ndarray, kind: str) -> None:
    """The same image and two copies, in the ways that programs have for it."""
    scale: dict[str, Any] = {"resolution": (40_000, 40_000), "resolutionunit": "centimeter"}
    with tifffile.TiffWriter(path, ome=kind == "ome") as writer:
        options = TILED | ({"metadata": {"PhysicalSizeX": 0.25}} if kind == "ome" else scale)
        if kind == "marked":
            writer.write(scan, **options)
            for factor in (2, 4):
                writer.write(halve(scan, factor), subfiletype=1, **TILED)
        else:
            writer.write(scan, subifds=2, **options)
            for factor in (2, 4):
                writer.write(halve(scan, factor), subfiletype=1, **TILED)


def opened(path: Path, **options: Any) -> Slide:
    return open_slide(partial(open, path, "rb"), path.name, **options)


def read(slide: Slide, x: int, y: int, edge: int, size: int) -> np.ndarray:
    return slide.read_square(x, y, edge, size, ByteCache(10**7))


def test_an_svs_has_its_levels_and_nothing_else(scan: np.ndarray, tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", scan)
    slide = opened(tmp_path / "a.svs")
    assert [(level.width, level.height) for level in slide.levels] == [(600, 400), (300, 200), (150, 100)]
    assert slide.pixel_size == (0.25, 0.25)
    assert not slide.image.several


@pytest.mark.parametrize("kind", ["svs", "marked", "subifds", "ome"])
def test_squares_come_from_the_level_at_or_just_above_the_scale(kind: str, scan: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_svs(path, scan) if kind == "svs" else write_levels(path, scan, kind)
    slide = opened(path)
    assert slide.pixel_size == pytest.approx((0.25, 0.25))
    levels = {1: scan, 2: halve(scan, 2), 4: halve(scan, 4)}
    for edge, size, factor in (
        (64, 64, 1),
        (128, 64, 2),
        (120, 80, 1),
        (192, 64, 2),
        (256, 64, 4),
        (360, 60, 4),
        (60, 64, 1),
        (127, 64, 2),
    ):
        x, y = 33, 21
        box = (x / factor, y / factor, (x + edge) / factor, (y + edge) / factor)
        expected = average_areas(levels[factor].astype(np.float32), box, size)
        assert np.abs(read(slide, x, y, edge, size) - expected).max() <= 0.501, (edge, size)
    assert np.array_equal(read(slide, 5, 9, 64, 64), scan[9:73, 5:69])
    assert np.array_equal(read(slide, 8, 12, 128, 64), halve(scan, 2)[6:70, 4:68])


def test_a_copy_that_cannot_be_read_is_no_level(scan: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(scan, **TILED)
        writer.write(halve(scan, 2)[..., 0], tile=(64, 64), subfiletype=1, metadata=None)  # grey
        writer.write(halve(scan, 3), subfiletype=1, tile=(64, 64), photometric="cielab", metadata=None)
        writer.write(halve(scan, 4)[:, :90], subfiletype=1, **TILED)  # another picture
        writer.write(halve(scan, 5), subfiletype=1, **TILED)
    assert [level.width for level in opened(tmp_path / "a.tif").levels] == [600, 120]


def test_channels_of_ome_have_levels_of_as_many(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).integers(0, 256, (3, 128, 192), np.uint8)
    small = channels[:, ::2, ::2]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        options: dict[str, Any] = {"photometric": "minisblack", "tile": (64, 64)}
        writer.write(channels, subifds=1, metadata={"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}}, **options)
        writer.write(small, subfiletype=1, metadata=None, **options)
    slide = opened(tmp_path / "a.ome.tif", rule=PixelRule(channels=("c", "a", "b")))
    assert [level.samples.names for level in slide.levels] == [("a", "b", "c")] * 2
    assert np.array_equal(read(slide, 0, 0, 128, 64), small[[2, 0, 1], :64, :64].transpose(1, 2, 0))


def test_tiles_at_a_scale(scan: np.ndarray, tmp_path: Path) -> None:
    """Two slides of different scanners: tiles of one scale, at places in pixels of the scan."""
    write_svs(tmp_path / "a.svs", scan, 0.25)
    write_svs(tmp_path / "b.svs", scan, 0.5)
    source = TiledSource(open_source(tmp_path), 64, mpp=0.5)
    items = list(source.items(0, 999))
    a = [(item.x, item.y) for item in items if item.key == "a.svs"]
    b = [(item.x, item.y) for item in items if item.key == "b.svs"]
    assert a == [(x, y) for y in (0, 128, 256, 272) for x in (0, 128, 256, 384, 472)]
    assert b == [(min(x, 536), min(y, 336)) for y in range(0, 400, 64) for x in range(0, 600, 64)]
    for item in items:
        decoded = item.decode()
        assert (decoded.width, decoded.height, decoded.x, decoded.y) == (600, 400, item.x, item.y)
        pixels = decoded.pixels.permute(1, 2, 0).numpy()
        if item.key == "b.svs":
            assert np.array_equal(pixels, scan[item.y : item.y + 64, item.x : item.x + 64])
        else:
            left, top = item.x // 2, item.y // 2
            assert np.array_equal(pixels, halve(scan, 2)[top : top + 64, left : left + 64])


def test_a_stride_is_at_the_scale_of_the_tiles(scan: np.ndarray, tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", scan, 0.25)
    items = list(TiledSource(open_source(tmp_path), 100, 50, mpp=0.5).items(0, 999))
    assert [(item.x, item.y) for item in items] == [(x, y) for y in (0, 100, 200) for x in (0, 100, 200, 300, 400)]


def test_images_that_do_not_say_their_scale(scan: np.ndarray, tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", scan, 0.25)
    Image.fromarray(scan).save(tmp_path / "b.png", dpi=(300, 300))
    write_svs(tmp_path / "c.svs", scan, 0.56)
    write_svs(tmp_path / "d.svs", scan, 0.54)
    tifffile.imwrite(tmp_path / "e.tif", scan, resolution=(40_000, 20_000), resolutionunit="centimeter")
    source = TiledSource(open_source(tmp_path), 64, mpp=0.5)
    reasons = {source.source.key(position): str(failure) for position, failure in source.failures.items()}
    assert reasons == {
        "b.png": "the file does not say how many microns a pixel is",
        "c.svs": "0.56 µm a pixel: coarser than --mpp 0.5",
        "e.tif": "pixels of 0.25×0.5 µm, which are no squares: resample it first",
    }
    assert not TiledSource(open_source(tmp_path), 64).failures  # no scale is needed: a fax's pixels are no squares
    for name in "acde":
        next(tmp_path.glob(f"{name}.*")).unlink()
    with pytest.raises(UsageError, match="--mpp 0.5: none of the images says how many microns a pixel is"):
        TiledSource(open_source(tmp_path), 64, mpp=0.5)


def test_a_tile_that_covers_too_much_is_a_failure(scan: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scan, resolution=(40_000, 40_000), resolutionunit="centimeter", **TILED)
    large, item = (next(iter(TiledSource(open_source(tmp_path), 32, mpp=3).items(0, 9))) for _ in range(2))
    assert item.size.edge == 384
    with pytest.raises(DecodeError, match="a tile covers 384×384 pixels of the smallest copy .* limit of 100,000"):
        large.decode(max_pixels=100_000)
    assert np.array_equal(item.decode().pixels.permute(1, 2, 0).numpy(), halve(scan[:384, :384], 12))


def test_pages_have_their_own_scale_and_levels(scan: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for number, pixels in enumerate((scan, scan[::-1])):
            scale: dict[str, Any] = {"resolution": (40_000 - 20_000 * number,) * 2, "resolutionunit": "centimeter"}
            writer.write(pixels, **TILED, **scale)
            writer.write(halve(pixels, 2), subfiletype=1, **TILED)
    items = list(TiledSource(PagedSource(open_source(tmp_path), "all"), 64, mpp=0.5).items(0, 999))
    first, second = items[0], next(item for item in items if item.page == 2)
    assert np.array_equal(first.decode().pixels.permute(1, 2, 0).numpy(), halve(scan, 2)[:64, :64])
    assert np.array_equal(second.decode().pixels.permute(1, 2, 0).numpy(), scan[::-1][:64, :64])


def test_the_fingerprint_knows_the_scale(scan: np.ndarray, tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", scan, 0.25)
    prints = [TiledSource(open_source(tmp_path), 64, mpp=mpp).fingerprint() for mpp in (None, 0.25, 0.5, 0.5)]
    write_svs(tmp_path / "a.svs", scan, 0.26)
    prints.append(TiledSource(open_source(tmp_path), 64, mpp=0.5).fingerprint())
    assert prints[2] == prints[3]
    assert len(set(prints)) == 4


@pytest.mark.parametrize("mpp", [0, -1.0, float("nan"), float("inf"), "x"])
def test_wrong_scales(mpp: Any, tmp_path: Path, scan: np.ndarray) -> None:
    write_svs(tmp_path / "a.svs", scan)
    with pytest.raises(UsageError, match="give microns a pixel, such as 0.5"):
        TiledSource(open_source(tmp_path), 64, mpp=mpp)


def test_empty_regions_are_said_at_any_scale(scan: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((256, 256, 3), np.uint8), resolution=(40_000, 40_000), resolutionunit="centimeter", **TILED)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        counts = list(tiff.pages.first.databytecounts)
        tiff.pages.first.tags["TileByteCounts"].overwrite([0, 0, *counts[2:4], 0, 0, *counts[6:]], dtype="I")
    items = list(TiledSource(open_source(tmp_path), 64, mpp=0.5).items(0, 9))
    assert [item.decode().empty for item in items] == [True, False, False, False]


def test_slides_that_are_no_files_are_decoded_whole(scan: np.ndarray, tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", scan, 0.25)
    images = pa.array([{"bytes": (tmp_path / "a.svs").read_bytes(), "path": "a.svs"}])
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    items = list(TiledSource(open_source(tmp_path / "images.parquet"), 64, mpp=0.5).items(0, 99))
    assert len(items) == 20
    for item in items:
        square = scan[item.y : item.y + 128, item.x : item.x + 128]
        assert np.array_equal(item.decode().pixels.permute(1, 2, 0).numpy(), halve(square, 2))
