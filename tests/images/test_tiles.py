"""Tiles cover every pixel once in a known order, whatever the format; an image that cannot be cut costs one position."""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
import torch
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images.decode import decode_image
from densefeat.images.sources import open_source
from densefeat.images.stream import ImageItem, hash_columns
from densefeat.images.tiles import Grid, TiledSource, TileItem, _measure_content


@pytest.fixture(scope="module")
def photo(photographs: list[Image.Image]) -> Image.Image:
    return photographs[2].crop((0, 0, 210, 130))


@dataclass
class Listed:
    """Images at hand, that count how often they are read."""

    images: dict[str, bytes]
    labels: dict[str, str] = field(default_factory=dict)
    times_read: dict[str, int] = field(default_factory=dict)
    labelled = True

    @property
    def length(self) -> int:
        return len(self.images)

    def read(self, key: str) -> bytes:
        self.times_read[key] = self.times_read.get(key, 0) + 1
        return self.images[key]

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        for key in list(self.images)[start:stop]:
            yield ImageItem(key, self.labels.get(key), lambda key=key: self.read(key))

    def keys(self) -> pa.LargeBinaryArray:
        return pa.array([key.encode() for key in self.images], pa.large_binary())

    def fingerprint(self) -> str:
        return hash_columns(self.keys(), pa.array([self.labels.get(key) for key in self.images], pa.large_string()))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def everything(source: TiledSource) -> list:
    return list(source.items(0, source.length))


def assert_tiles_of(items: list[TileItem], whole: np.ndarray) -> None:
    """That decoding gives the pixels of ``whole`` at each item's place."""
    for item in items:
        decoded = item.decode("pillow")
        assert (decoded.x, decoded.y, decoded.width, decoded.height) == (item.x, item.y, whole.shape[1], whole.shape[0])
        assert decoded.pixels.dtype == torch.uint8
        assert decoded.pixels.is_contiguous()
        square = whole[item.y : item.y + item.tile, item.x : item.x + item.tile]
        assert np.array_equal(decoded.pixels.permute(1, 2, 0).numpy(), square)


@pytest.mark.parametrize(
    ("length", "tile", "stride", "places"),
    [
        (100, 50, 50, [0, 50]),
        (101, 50, 50, [0, 50, 51]),
        (149, 50, 50, [0, 50, 99]),
        (50, 50, 50, [0]),
        (50, 50, 7, [0]),
        (110, 50, 40, [0, 40, 60]),
        (130, 50, 40, [0, 40, 80]),
        (130, 50, 60, [0, 60]),
        (160, 50, 60, [0, 60]),  # sparse: nothing flush with the border
        (170, 50, 60, [0, 60, 120]),
    ],
)
def test_places_along_an_edge(length: int, tile: int, stride: int, places: list[int]) -> None:
    grid = Grid(tile, stride)
    assert grid.count_along(length) == len(places)
    assert [grid.locate(number, length, tile)[0] for number in range(len(places))] == places
    assert [grid.locate(number, tile, length)[1] for number in range(len(places))] == places


def test_every_pixel_is_covered_and_none_invented() -> None:
    for length in range(32, 120):
        for stride in (1, 5, 31, 32):
            grid = Grid(32, stride)
            covered = np.zeros(length, int)
            for number in range(grid.count_along(length)):
                x, y = grid.locate(number, length, 40)
                assert 0 <= x <= length - 32
                assert y == 0
                covered[x : x + 32] += 1
            assert covered.all()


@pytest.fixture
def mixed(tmp_path: Path, photographs: list[Image.Image], photo: Image.Image) -> Path:
    """A folder with photographs of many formats."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    photographs[1].save(folder / "a.jpg")
    photo.save(folder / "b.png")
    tifffile.imwrite(folder / "c.tif", np.asarray(photo), tile=(64, 48), compression="zlib")
    photographs[3].save(folder / "d.webp", lossless=True)
    photo.crop((0, 0, 64, 64)).save(folder / "e.bmp")
    photographs[4].save(folder / "f.tiff", compression="jpeg")
    return folder


def test_tiles_of_all_formats_in_order(mixed: Path) -> None:
    source = TiledSource(open_source(mixed), 64, 48)
    items = everything(source)
    assert len(items) == source.length
    places = [(item.key, item.y, item.x) for item in items]
    assert places == sorted(places)
    assert len(set(places)) == len(places)
    for path in sorted(mixed.iterdir()):
        own = [item for item in items if item.key == path.name]
        assert own[-1].x == own[-1].size.width - 64
        assert own[-1].y == own[-1].size.height - 64
        assert_tiles_of(own, np.asarray(decode_image(path.read_bytes())))
    assert {item.key for item in items if item.size.by_region} == {"c.tif", "f.tiff"}


def test_torchvision_decodes_photographs(mixed: Path) -> None:
    whole = next(iter(open_source(mixed).items(0, 1))).decode("torchvision").pixels
    for item in TiledSource(open_source(mixed), 100).items(0, 9):
        square = item.decode("torchvision").pixels
        assert torch.equal(square, whole[:, item.y : item.y + 100, item.x : item.x + 100])
        assert square.is_contiguous()


def png_with_late_exif(image: Image.Image, orientation: int) -> bytes:
    """The tag after the pixels, as some programs write it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    data = encode(image)
    return data[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "late PNG", "WEBP", "TIFF"])
def test_places_are_those_of_the_upright_image(kind: str, orientation: int, photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png_with_late_exif(photo, orientation) if kind == "late PNG" else encode(photo, kind, exif=exif)
    upright = np.asarray(decode_image(data))
    assert upright.shape[:2] == ((210, 130) if orientation > 4 else (130, 210))
    (tmp_path / f"a.{kind.split()[-1].lower()}").write_bytes(data)
    for source in (Listed({"a": data}), open_source(tmp_path)):
        assert_tiles_of(everything(TiledSource(source, 100)), upright)


def test_the_share_of_content() -> None:
    pixels = np.full((3, 10, 10), 255, np.uint8)
    assert _measure_content(pixels.transpose(1, 2, 0)) == 0
    pixels[:, :2] = 15
    assert _measure_content(pixels.transpose(1, 2, 0)) == 0
    pixels[:, :5] = np.uint8([15, 15, 16])[:, None, None]
    pixels[2, 5:6] = 219
    assert _measure_content(pixels.transpose(1, 2, 0)) == pytest.approx(0.6)


@pytest.mark.parametrize(("least", "kept"), [(0, 4), (0.2, 3), (0.25, 3), (0.26, 2), (0.5, 2), (0.51, 1), (1, 1)])
def test_tiles_without_content_are_left_out(least: float, kept: int) -> None:
    """Of four tiles one is empty, one a quarter full, one half, one whole."""
    pixels = np.full((64, 64, 3), 240, np.uint8)
    pixels[:8, 32:] = 100
    pixels[32:48, :32] = 100
    pixels[32:, 32:] = 100
    source = TiledSource(Listed({"a": encode(Image.fromarray(pixels))}), 32, min_content=least)
    assert source.length == 4
    assert sum(item.decode() is not None for item in everything(source)) == kept


def test_an_image_of_too_many_tiles_is_one_failure(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    photo.crop((0, 0, 64, 96)).save(tmp_path / "b.png")
    source = TiledSource(open_source(tmp_path), 32, max_tiles=6)
    first, *others = everything(source)
    assert (first.key, {item.key for item in others}, len(others)) == ("a.png", {"b.png"}, 6)
    with pytest.raises(DecodeError, match=r"^210×130 pixels are 35 tiles, more than the limit of 6 \(--max-tiles\)$"):
        first.decode()


def write_sparse_slide(path: Path, side: int, segment: int, orientation: int = 1) -> None:
    """Write a white slide whose file has only its first segment."""

    def segments() -> Iterator[np.ndarray | None]:
        yield np.full((segment, segment, 3), 255, np.uint8)
        yield from repeat(None, (side // segment) ** 2 - 1)

    layout = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (segment, segment), "photometric": "rgb"}
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, segments(), **layout, compression="zlib", extratags=tags)


def test_a_small_file_of_millions_of_tiles_is_one_failure(tmp_path: Path) -> None:
    write_sparse_slide(tmp_path / "a.tif", 2**18, 2**12)
    source = TiledSource(open_source(tmp_path), 32)
    (failing,) = everything(source)
    with pytest.raises(DecodeError, match=r"^262144×262144 pixels are 67,108,864 tiles, more than the limit of 4,000,000"):
        failing.decode()
    assert TiledSource(open_source(tmp_path), 224).length == 1171**2  # 262,144 pixels are 1170.3 tiles


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiles_that_their_file_leaves_out_are_said_to_be_empty(orientation: int, tmp_path: Path) -> None:
    write_sparse_slide(tmp_path / "a.tif", 128, 64, orientation)
    full = {1: (0, 0), 3: (64, 64), 6: (64, 0), 8: (0, 64)}[orientation]  # where the first segment is in the upright image
    for stride, filled in ((64, 1), (32, 4)):
        decoded = [item.decode() for item in everything(TiledSource(open_source(tmp_path), 64, stride))]
        assert sum(not tile.empty for tile in decoded) == filled
        assert next(tile for tile in decoded if (tile.x, tile.y) == full).empty is False
        assert all(bool((tile.pixels == 255).all()) for tile in decoded)


def test_any_range_of_positions(mixed: Path) -> None:
    source = TiledSource(open_source(mixed), 64, 40)
    every = [(item.key, item.x, item.y) for item in everything(source)]
    length = len(every)
    for start in (0, 1, 7, length // 2, length - 1, length, length + 5):
        for stop in (0, 1, 8, length // 2 + 1, length - 1, length, 10 * length):
            assert [(item.key, item.x, item.y) for item in source.items(start, stop)] == every[start:stop]


def test_an_image_is_decoded_once_for_all_threads(photo: Image.Image) -> None:
    photographs = Listed({name: encode(photo, "JPEG") for name in "ab"})
    source = TiledSource(photographs, 32, 8)
    photographs.times_read.clear()
    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(lambda item: item.decode("pillow").pixels, everything(source)))
    assert photographs.times_read == {"a": 1, "b": 1}
    whole = np.asarray(decode_image(photographs.images["a"]))
    for item, tile in zip(everything(source), tiles, strict=True):
        assert np.array_equal(tile.permute(1, 2, 0).numpy(), whole[item.y : item.y + 32, item.x : item.x + 32])


def test_threads_read_regions(photographs: list[Image.Image], tmp_path: Path) -> None:
    pixels = np.asarray(photographs[0])
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32), compression="lzw")
    source = TiledSource(open_source(tmp_path), 48, 16)
    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(lambda item: item.decode().pixels, everything(source)))
    for item, tile in zip(everything(source), tiles, strict=True):
        assert np.array_equal(tile.permute(1, 2, 0).numpy(), pixels[item.y : item.y + 48, item.x : item.x + 48])


def test_an_image_that_cannot_be_decoded_fails_for_each_tile_but_is_tried_once(photo: Image.Image) -> None:
    listed = Listed({"broken": encode(photo, "JPEG")[:-900], "fine": encode(photo)})
    source = TiledSource(listed, 64)
    listed.times_read.clear()
    items = everything(source)
    assert len(items) == 2 * 12
    for item in items[:12]:
        with pytest.raises(DecodeError, match="truncated"):
            item.decode()
    assert items[12].decode() is not None
    assert listed.times_read == {"broken": 1, "fine": 1}


def test_a_damaged_segment_costs_the_tiles_that_touch_it(photo: Image.Image, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(photo), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset = tiff.pages.first.dataoffsets[5]  # of 4 × 3: the second of the second row
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset + 20)
        file.write(bytes(20))
    failed = set()
    for item in TiledSource(open_source(tmp_path), 32).items(0, 99):
        try:
            item.decode()
        except DecodeError as error:
            assert str(error).startswith("segment 5: ")
            failed.add((item.x, item.y))
    assert failed == {(x, y) for x in (64, 96) for y in (64, 96, 98)}


def png_header(width: int, height: int) -> bytes:
    good = encode(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">II", width, height) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


@pytest.mark.parametrize(
    ("name", "data", "reason", "stage"),
    [
        ("a.jpg", b"", "the file is empty", "decode"),
        ("a.jpg", b"<html>", "not an image of a format that is read", "decode"),
        ("a.png", encode(Image.new("RGB", (100, 80))), "100×80 pixels: smaller than a tile of 96", "decode"),
        ("a.tif", encode(Image.new("RGB", (80, 100)), "TIFF"), "80×100 pixels: smaller than a tile of 96", "decode"),
        ("a.png", png_header(30_000, 30_000), "30000×30000 pixels are more than the limit of 1,000,000", "decode"),
        ("a.png", png_header(100, 20_000), "100×20000 pixels", "decode"),
        ("a.tif", encode(Image.new("RGB", (100, 100)), "TIFF")[:100], ".", "decode"),
        ("a.tif", encode(Image.new("LAB", (100, 100)), "TIFF"), "TIFF with colours CIELAB: convert to RGB", "decode"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_cut_is_one_position_that_fails(
    name: str, data: bytes, reason: str, stage: str, photo: Image.Image, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    photo.save(tmp_path / "b.png")
    source = TiledSource(open_source(tmp_path), 96, max_pixels=1_000_000)
    failing, *others = everything(source)
    assert len(others) == 3 * 2
    assert failing.key == name
    with pytest.raises(DecodeError, match=reason) as caught:
        failing.decode()
    assert caught.value.stage == stage
    assert_tiles_of(others, np.asarray(photo))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_named_pipes_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("nowhere.jpg")
    fifo, link = everything(TiledSource(open_source(tmp_path), 96))
    for item, reason in ((fifo, "not a regular file"), (link, "No such file")):
        with pytest.raises(DecodeError, match=reason) as caught:
            item.decode()
        assert caught.value.stage == "read"


def test_no_link_out_of_the_folder_is_followed(mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for name in ("b.png", "c.tif"):
        (folder / name).symlink_to(mixed / name)
    for item in everything(TiledSource(open_source(folder), 64)):
        with pytest.raises(DecodeError, match="a symbolic link out of the folder"):
            item.decode()
    assert everything(TiledSource(open_source(folder, follow_links=True), 64))[0].decode() is not None


def test_a_tiff_that_is_no_file_is_decoded_whole(photo: Image.Image) -> None:
    data = encode(photo, "TIFF")
    source = TiledSource(Listed({"a": data}), 100)
    assert_tiles_of(everything(source), np.asarray(photo))
    (failing,) = everything(TiledSource(Listed({"a": data}), 100, max_pixels=10_000))
    with pytest.raises(DecodeError, match="limit of 10,000 "):
        failing.decode()


def test_images_read_by_region_have_no_limit_on_pixels(photo: Image.Image, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(photo), tile=(64, 64))
    source = TiledSource(open_source(tmp_path), 100, max_pixels=64 * 64)
    assert source.length == 3 * 2
    assert_tiles_of(everything(source), np.asarray(photo))


def test_keys_and_labels(photo: Image.Image) -> None:
    source = TiledSource(Listed({"a": encode(photo), "b": b"", "c": encode(photo)}, labels={"a": "cat"}), 100)
    keys = source.keys()
    assert keys.type == pa.large_binary()
    assert keys.to_pylist() == [b"a"] * 6 + [b"b"] + [b"c"] * 6
    assert [item.key.encode() for item in everything(source)] == keys.to_pylist()
    assert [item.label for item in everything(source)] == ["cat"] * 6 + [None] * 7
    assert source.labelled


def test_the_fingerprint_says_which_tile_a_position_is(photo: Image.Image) -> None:
    images = {"a": encode(photo), "b": encode(photo)}
    same = [
        TiledSource(Listed(images), 100),
        TiledSource(Listed(images), 100, 100),
        TiledSource(Listed({key: encode(photo, "JPEG") for key in "ab"}), 100),  # other pixels at the same places
    ]
    other = [
        TiledSource(Listed(images), 100, 99),
        TiledSource(Listed(images), 99, 100),
        TiledSource(Listed(images, {"a": "cat"}), 100),
        TiledSource(Listed({"a": images["a"], "c": images["b"]}), 100),
        TiledSource(Listed({"a": images["a"]}), 100),
        TiledSource(Listed({"a": images["a"], "b": encode(photo.crop((0, 0, 210, 129)))}), 100),
        TiledSource(Listed({"a": images["a"], "b": b""}), 100),
    ]
    prints = [source.fingerprint() for source in same + other]
    assert len(set(prints[: len(same)])) == 1
    assert len(set(prints)) == 1 + len(other)


def test_an_image_that_changes_after_it_was_measured(photo: Image.Image, tmp_path: Path) -> None:
    for name in ("a.png", "b.tif"):
        photo.save(tmp_path / name)
    items = everything(TiledSource(open_source(tmp_path), 100))
    for name in ("a.png", "b.tif"):
        photo.crop((0, 0, 205, 130)).save(tmp_path / name)
    for item in items:
        with pytest.raises(DecodeError, match="205×130 pixels, but 210×130 when tiles were counted"):
            item.decode()


def test_pickling_leaves_the_caches_out(mixed: Path) -> None:
    source = TiledSource(open_source(mixed), 64)
    fresh = len(pickle.dumps(source))
    tiles = [item.decode("pillow") for item in everything(source)]
    assert len(pickle.dumps(source)) <= fresh
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    for item, tile in zip(everything(again), tiles, strict=True):
        assert torch.equal(item.decode("pillow").pixels, tile.pixels)


def test_an_input_without_tiles() -> None:
    source = TiledSource(Listed({}), 64)
    assert source.length == 0
    assert everything(source) == []
    assert len(source.keys()) == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tile": 31}, "tile 31: at least 32 pixels"),
        ({"tile": 64, "stride": 0}, "stride 0: at least 1 pixel"),
        ({"tile": 64, "stride": -3}, "stride -3"),
        ({"tile": 64, "min_content": 1.01}, "min content 1.01: a share between 0 and 1"),
        ({"tile": 64, "min_content": -0.1}, "min content -0.1"),
        ({"tile": 64, "min_content": float("nan")}, "min content nan"),
    ],
)
def test_wrong_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TiledSource(Listed({}), **arguments)


class Endless(Listed):
    length = None


def test_an_input_of_unknown_length() -> None:
    with pytest.raises(UsageError, match="tiles need an input whose length is known beforehand"):
        TiledSource(Endless({}), 64)
