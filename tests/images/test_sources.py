"""The one door for every kind of input: which kind something is, and what does not belong to it."""

import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat import UsageError
from densefeat.images.files import Files
from densefeat.images.sources import open_source
from densefeat.images.tables import Tables
from densefeat.images.tars import Members
from support.streams import make, outcomes, read_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one input of many kinds."""
    make(tmp_path, "cats/a.png", "cats/deep/b.png", "photo.jpg", "notes.md", "empty/readme.md", "[odd] {1..2}.parquet/c.png")
    (tmp_path / "list.txt").write_text("cats/a.png\n")
    pq.write_table(pa.table({"path": ["cats/a.png"], "n": [1]}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"image": [b"x"], "path": ["cats/a.png"]}), tmp_path / "table.parquet")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "odd [1] {1..2}.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("images", "options", "kind", "found"),
    [
        ("cats", {}, Files, [("a.png", None, b"cats/a.png"), ("deep/b.png", None, b"cats/deep/b.png")]),
        ("cats/", dict(labels="folder"), Files, [("a.png", None, b"cats/a.png"), ("deep/b.png", "deep", b"cats/deep/b.png")]),
        ("[odd] {1..2}.parquet", {}, Files, [("c.png", None, b"[odd] {1..2}.parquet/c.png")]),
        ("list.txt", {}, Files, [("cats/a.png", None, b"cats/a.png")]),
        ("list.txt", dict(base="."), Files, [("cats/a.png", None, b"cats/a.png")]),
        ("list.parquet", dict(label_column="n"), Files, [("cats/a.png", "1", b"cats/a.png")]),
        ("table.parquet", {}, Tables, [("table.parquet#0", None, b"x")]),
        ("table.parquet", dict(image_column="path"), Files, [("cats/a.png", None, b"cats/a.png")]),
        ("odd [1] {1..2}.parquet", {}, Tables, [("odd [1] {1..2}.parquet#0", None, b"x")]),
    ],
)
def test_kinds(images: str, options: dict, kind: type, found: list, folder: Path) -> None:
    for address in (images, Path(images), folder / images, (folder / images).as_uri() if "%" not in images and " " not in images else images):  # fmt: skip
        source = open_source(address, **options)
        assert type(source) is kind
        assert read_source(source) == found


def test_tar_files(folder: Path) -> None:
    with tarfile.open("x.tar", "w") as tar:
        tar.add("cats")
    source = open_source("x.tar")
    assert type(source) is Members
    assert [data for _, _, data in read_source(source)] == [b"cats/a.png", b"cats/deep/b.png"]


@pytest.mark.parametrize(
    ("images", "options", "match"),
    [
        ("nowhere", {}, "images 'nowhere': no such folder or file; give a folder, a list"),
        ("nowhere.parquet", {}, r"images 'nowhere.parquet': no such file$"),
        ("nowhere.tar", {}, r"images 'nowhere.tar': no such file$"),
        ("nowhere.tsv", {}, r"images 'nowhere.tsv': no such file$"),
        ("nowhere-{0..3}.tar", {}, r"images 'nowhere-\{0..3\}.tar': no such file: .*nowhere-0.tar$"),
        ("x-{0..999999999}.tar", {}, "braces for more than 100,000 files"),
        ("*.parquet/nowhere", {}, "no such folder or file"),
        ("notes.md", {}, "neither a folder, a list"),
        ("photo.jpg", {}, "neither a folder, a list"),
        ("empty", {}, r"no file with an image's extension \(.jpg"),
        ("", {}, "the name of the input is empty"),
        ("cats", dict(labels="dir"), "labels 'dir': only 'folder' is known"),
        ("cats", dict(label_column="class"), "label_column 'class' is not for a folder of images"),
        ("cats", dict(image_column="image"), "image_column 'image' is not for a folder of images"),
        ("cats", dict(base="/"), "base '/' is not for a folder of images"),
        ("hf:x:y", dict(base="/"), "base '/' is not for a data set"),
        ("list.txt", dict(labels="folder"), "labels 'folder' is not for a list"),
    ],
)
def test_wrong_inputs(images: str, options: dict, match: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        open_source(images, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX links")
def test_a_linked_folder_is_its_target(folder: Path) -> None:
    (folder / "link").symlink_to("cats")
    assert outcomes(open_source("link").items(0, 9)) == outcomes(open_source("cats").items(0, 9))
