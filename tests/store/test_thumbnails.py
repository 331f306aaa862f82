"""Thumbnails from every kind of input; images that cannot be read are left out."""

import base64
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densefeat.store.entries import ImageEntry
from densefeat.store.thumbnails import _EDGE, encode_thumbnail, make_thumbnails

ONE = {"block1": np.ones((1, 2), np.float32)}


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def assert_shows(uri: str, image: Image.Image) -> None:
    """The thumbnail is the image, at most 160 pixels a side."""
    shown = opened(uri)
    assert max(shown.size) == min(_EDGE, max(image.size))
    expected = np.asarray(image.convert("RGB").resize(shown.size, Image.Resampling.LANCZOS), float)
    assert np.abs(np.asarray(shown, float) - expected).mean() < 6


def test_a_folder_is_read_by_key(make_store, photo_folder: Path) -> None:
    store = make_store(ONE, images="/elsewhere")
    wanted = [ImageEntry("china/00.jpg"), ImageEntry("flower/07.jpg", "flower")]
    made, problem = make_thumbnails(store.provenance, wanted, photo_folder)
    assert problem is None
    for entry in wanted:
        assert_shows(made[entry], Image.open(photo_folder / entry.path))


def test_missing_broken_and_outside_images_are_left_out(make_store, photo_folder: Path) -> None:
    (photo_folder / "bad.jpg").write_bytes(b"x")
    (photo_folder / "folder.jpg").mkdir()
    (photo_folder.parent / "outside.jpg").write_bytes((photo_folder / "china/00.jpg").read_bytes())
    os.symlink(photo_folder.parent / "outside.jpg", photo_folder / "link.jpg")
    bad = ["bad.jpg", "folder.jpg", "gone.jpg", "../outside.jpg", str(photo_folder.parent / "outside.jpg"), "link.jpg", ""]
    store = make_store(ONE, images=str(photo_folder), input_options={"follow_links": True, "base": str(photo_folder.parent)})
    made, problem = make_thumbnails(store.provenance, [ImageEntry(path) for path in [*bad, "china/01.jpg"]], photo_folder)
    assert (list(made), problem) == ([ImageEntry("china/01.jpg")], None)


def test_other_inputs_are_searched_by_key(make_store, photo_folder: Path, tmp_path: Path) -> None:
    paths = [path.relative_to(photo_folder).as_posix() for path in sorted(photo_folder.rglob("*.jpg"))]
    images = [{"bytes": (photo_folder / path).read_bytes(), "path": path} for path in paths]
    images[3]["bytes"] = b"x"
    pq.write_table(pa.table({"image": images}), tmp_path / "table.parquet")
    table = tmp_path / "table.parquet"
    made, problem = make_thumbnails(
        make_store(ONE).provenance, [ImageEntry(f"table.parquet#{i}") for i in (8, 3, 1, 99)], table
    )
    assert problem is None
    assert set(made) == {ImageEntry("table.parquet#8"), ImageEntry("table.parquet#1")}
    assert_shows(made[ImageEntry("table.parquet#8")], Image.open(photo_folder / paths[8]))


def test_tiles_are_cut_out(make_store, photo_folder: Path) -> None:
    tiles = {"tile": 64, "stride": 32, "min_content": 0.5, "max_pixels": 10**6}
    store = make_store(ONE, tiles=tiles)
    wanted = [
        ImageEntry("china/00.jpg", None, 0, 0),
        ImageEntry("china/00.jpg", None, 576, 363),
        ImageEntry("flower/06.jpg", None, 96, 32),
    ]
    made, problem = make_thumbnails(store.provenance, [*wanted, ImageEntry("flower/06.jpg", None, 1, 1)], photo_folder)
    assert (set(made), problem) == (set(wanted), None)
    for entry in wanted:
        place = (entry.x, entry.y, entry.x + 64, entry.y + 64)
        assert_shows(made[entry], Image.open(photo_folder / entry.path).crop(place))


@pytest.mark.parametrize(
    ("recorded", "images", "problem"),
    [
        ({}, None, "the store does not say where its images are: give --images"),
        ({"images": "s3://b/c"}, None, "give --images to show them; the store says that they are at s3://b/c"),
        (
            {"images": "l.csv", "input_options": {"base": "/p"}},
            None,
            "give --images to show them; the store says that they are at /p",
        ),
        ({"images": "photos"}, "/elsewhere", "images '/elsewhere': no such"),
    ],
)
def test_no_images_and_why(make_store, recorded: dict, images: str | None, problem: str) -> None:
    made, told = make_thumbnails(make_store(ONE, **recorded).provenance, [ImageEntry("a.jpg")], images)
    assert made == {}
    assert told is not None
    assert told.startswith(problem)


@pytest.mark.parametrize("options", [{}, {"base": "/"}, {"follow_links": True}])
def test_what_only_the_store_names_is_not_read(make_store, photo_folder: Path, options: dict) -> None:
    """Such a store comes from someone else, and the page goes to others."""
    store = make_store(ONE, images=str(photo_folder), input_options=options)
    for key in ("china/00.jpg", str(photo_folder / "china/00.jpg")):
        assert make_thumbnails(store.provenance, [ImageEntry(key)])[0] == {}


def test_lists_and_tables_are_read_as_they_were(make_store, photo_folder: Path, tmp_path: Path) -> None:
    """A list by itself or by the folder of its paths; of a table the column that was extracted."""
    (photo_folder / "list.csv").write_text("file,label\nchina/00.jpg,x\n")
    store = make_store(ONE, images=str(photo_folder / "list.csv"), input_options={"image_column": "file", "base": None})
    for place in (photo_folder / "list.csv", photo_folder, f"file://{photo_folder}"):
        assert list(make_thumbnails(store.provenance, [ImageEntry("china/00.jpg")], place)[0]) == [ImageEntry("china/00.jpg")]
    first, second = ([{"bytes": (photo_folder / f"china/{i:02}.jpg").read_bytes(), "path": None}] for i in (0, 1))
    pq.write_table(pa.table({"first": first, "second": second}), tmp_path / "two.parquet")
    store = make_store(ONE, input_options={"image_column": "second"})
    made, problem = make_thumbnails(store.provenance, [ImageEntry("two.parquet#0")], tmp_path / "two.parquet")
    assert problem is None
    assert_shows(made[ImageEntry("two.parquet#0")], Image.open(photo_folder / "china/01.jpg"))


def test_a_small_image_stays_small() -> None:
    assert opened(encode_thumbnail(Image.new("RGB", (20, 10)))).size == (20, 10)
