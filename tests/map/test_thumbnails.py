"""Small pictures on sheets."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.map.thumbnails import ACROSS, Sheets, _keep_within, _pack_sheets, _spread_order, make_sheets
from densefeat.store.entries import ImageEntry

ROOM = 10**9


def write_images(folder: Path, count: int, size: tuple[int, int] = (90, 45)) -> list[ImageEntry]:
    """Write images of one colour each; blue is the number of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (200, 100, i % 256)).save(folder / f"{i:04}.png")
    return [ImageEntry(f"{i:04}.png") for i in range(count)]


def thumbnail(sheets: Sheets, place: int) -> Image.Image:
    """Cut out a thumbnail as the page's script does."""
    number, square = divmod(int(sheets.squares[place]), ACROSS**2)
    data = base64.b64decode(sheets.uris[number].removeprefix("data:image/jpeg;base64,"))
    left, top = square % ACROSS * sheets.edge, square // ACROSS * sheets.edge
    width, height = sheets.sizes[place].tolist()
    return Image.open(io.BytesIO(data)).crop((left, top, left + width, top + height))


def make_some_sheets(entries: list[ImageEntry], folder: Path, room: int = ROOM) -> Sheets:
    return make_sheets({}, entries, room, str(folder), lambda done: None)


def test_every_image_is_where_it_should_be(tmp_path: Path) -> None:
    entries = write_images(tmp_path, 300)
    sheets = make_some_sheets(entries, tmp_path)
    assert (sheets.edge, len(sheets.uris), sheets.full, sheets.problem) == (64, 2, False, None)
    assert sorted(sheets.squares.tolist()) == list(range(300))
    for place in (0, 1, 17, 255, 256, 299):
        image = thumbnail(sheets, place)
        assert image.size == (64, 32)
        pixels = np.asarray(image, np.int16)[1:-1, 1:-1]  # colour is coarser than a pixel: the outermost mix with a neighbour's
        assert np.abs(pixels - (200, 100, place % 256)).max() < 8


def test_small_images_have_small_squares_and_keep_their_size(tmp_path: Path) -> None:
    sheets = make_some_sheets(write_images(tmp_path, 3, (20, 32)), tmp_path)
    assert sheets.edge == 32
    assert sheets.sizes.tolist() == [[20, 32]] * 3


def test_an_image_that_cannot_be_shown_costs_itself(tmp_path: Path) -> None:
    entries = write_images(tmp_path, 4)
    (tmp_path / "0001.png").unlink()
    (tmp_path / "0002.png").write_bytes(b"no image")
    sheets = make_some_sheets(entries, tmp_path)
    assert (sheets.squares >= 0).tolist() == [True, False, False, True]
    assert not sheets.full


def test_rows_of_one_image_share_its_square(tmp_path: Path) -> None:
    entries = write_images(tmp_path, 2)
    squares = make_some_sheets([entries[0], entries[1], entries[0]], tmp_path).squares.tolist()
    assert squares[0] == squares[2] != squares[1]


def test_fewer_where_there_is_little_room(tmp_path: Path) -> None:
    """Whole sheets, of images that are spread over all rows; and not many more are read than fit."""
    generator = np.random.default_rng(0)
    entries = [ImageEntry(f"{i:03}.png") for i in range(900)]
    for entry in entries:
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / entry.path)
    each = sum(map(len, make_some_sheets(entries, tmp_path).uris)) / 900
    read: list[int] = []
    sheets = make_sheets({}, entries, int(620 * each), str(tmp_path), read.append)
    assert sum(map(len, sheets.uris)) <= 620 * each
    there = np.flatnonzero(sheets.squares >= 0)
    assert sheets.full
    assert 512 <= len(there) <= sum(read) < 640
    assert np.diff(there).max() <= 4
    assert np.bincount(there // 100).min() > 0.8 * len(there) / 9


def test_no_room_at_all(tmp_path: Path) -> None:
    sheets = make_some_sheets(write_images(tmp_path, 3), tmp_path, room=-5)
    assert (sheets.uris, sheets.squares.tolist(), sheets.full) == ([], [-1, -1, -1], True)


@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        ({}, "does not say where its images are: give --images"),
        ({"images": "/a/place"}, "give --images to show them; the store says that they are at /a/place"),
    ],
)
def test_why_there_are_none(provenance: dict, reason: str) -> None:
    sheets = make_sheets(provenance, [ImageEntry("a.png")], ROOM, None, lambda done: None)
    assert reason in str(sheets.problem)
    assert sheets.squares.tolist() == [-1]


def test_images_that_have_moved(tmp_path: Path) -> None:
    entries = write_images(tmp_path / "here", 2)
    sheets = make_sheets({"images": "s3://bucket/x"}, entries, ROOM, str(tmp_path / "here"), lambda done: None)
    assert (sheets.squares >= 0).all()


def test_tiles(tmp_path: Path) -> None:
    """Each its own part of the image."""
    image = Image.new("RGB", (64, 32), (250, 0, 0))
    image.paste((0, 0, 250), (32, 0, 64, 32))
    image.save(tmp_path / "a.png")
    provenance = {"tiles": {"tile": 32, "stride": 32}}
    entries = [ImageEntry("a.png", x=32, y=0), ImageEntry("a.png", x=0, y=0)]
    sheets = make_sheets(provenance, entries, ROOM, str(tmp_path), lambda done: None)
    colours = [thumbnail(sheets, place).getpixel((16, 16)) for place in (0, 1)]
    assert colours[0][2] > 200 > colours[0][0]
    assert colours[1][0] > 200 > colours[1][2]


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_any_beginning_is_spread(count: int) -> None:
    order = _spread_order(count)
    assert sorted(order.tolist()) == list(range(count))
    for taken in (count // 3, count // 2):
        gaps = np.diff(np.sort(order[:taken]))
        assert gaps.max(initial=1) <= 2 * count / max(taken, 1) + 2


def test_within_counts_whole_sheets() -> None:
    assert _keep_within(["aaa", "bb", "c"], 5) == ["aaa", "bb"]
    assert _keep_within([], 5) == []
    assert _pack_sheets([], 64) == []
