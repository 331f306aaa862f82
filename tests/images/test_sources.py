"""The one door for every kind of input: which kind something is, and what does not belong to it."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densefeat import UsageError
from densefeat.images.files import ImageFiles
from densefeat.images.sources import open_source
from densefeat.images.tables import TableRows
from densefeat.images.tars import TarMembers
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
        ("cats", {}, ImageFiles, [("a.png", None, b"cats/a.png"), ("deep/b.png", None, b"cats/deep/b.png")]),
        (
            "cats/",
            dict(labels="folder"),
            ImageFiles,
            [("a.png", None, b"cats/a.png"), ("deep/b.png", "deep", b"cats/deep/b.png")],
        ),
        ("[odd] {1..2}.parquet", {}, ImageFiles, [("c.png", None, b"[odd] {1..2}.parquet/c.png")]),
        ("list.txt", {}, ImageFiles, [("cats/a.png", None, b"cats/a.png")]),
        ("list.txt", dict(base="."), ImageFiles, [("cats/a.png", None, b"cats/a.png")]),
        ("list.parquet", dict(label_column="n"), ImageFiles, [("cats/a.png", "1", b"cats/a.png")]),
        ("table.parquet", {}, TableRows, [("table.parquet#0", None, b"x")]),
        ("table.parquet", dict(image_column="path"), ImageFiles, [("cats/a.png", None, b"cats/a.png")]),
        ("odd [1] {1..2}.parquet", {}, TableRows, [("odd [1] {1..2}.parquet#0", None, b"x")]),
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
    assert type(source) is TarMembers
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
        ("photo.jpg", {}, r"images 'photo.jpg': one image: give the folder that it lies in, or a list of paths \(.txt\)"),
        ("cats/*.png", {}, "images 'cats/.*': globs are for Parquet and tar files: give the folder 'cats', or a list of paths"),
        ("./cats/*/*", {}, "give the folder './cats', or a list"),
        ("c*/deep/b.png", {}, "give the folder '.', or a list"),
        ("photo-{0..9}.jpg", {}, "give the folder '.', or a list"),
        ("*", {}, "give the folder '.', or a list"),
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


def test_globs_pass_over_hidden_files_unless_there_is_nothing_else(folder: Path) -> None:
    table = (folder / "table.parquet").read_bytes()
    for name in ("s/x.parquet", "s/._x.parquet", "s/.tmp/y.parquet", "t/.z.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(table)
    for images, keys in {
        "s/*.parquet": ["x"],
        "s/**/*.parquet": ["x"],
        "s/.tmp/*.parquet": ["y"],
        "t/*.parquet": [".z"],
    }.items():
        assert open_source(images).keys().to_pylist() == [f"{key}.parquet#0".encode() for key in keys]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX links")
def test_a_linked_folder_is_its_target(folder: Path) -> None:
    (folder / "link").symlink_to("cats")
    assert outcomes(open_source("link").items(0, 9)) == outcomes(open_source("cats").items(0, 9))


_WITHOUT_TORCH = """
import json, sys
from densefeat.images import TiledSource, open_source
read = []
for images in json.loads(sys.argv[1]):
    source = open_source(images)
    source.fingerprint()
    (item,) = source.items(0, 1)
    read.append(item.decode("pillow").width)
read.append(TiledSource(open_source(json.loads(sys.argv[1])[0]), 32).length)
print(read, [name for name in ("torch", "torchvision", "timm") if name in sys.modules])
"""


def test_inputs_are_opened_and_read_without_torch(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "folder" / "a.png")
    (tmp_path / "list.csv").write_text("path\nfolder/a.png\n")
    encoded = (tmp_path / "folder" / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [encoded]}), tmp_path / "table.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "folder", "folder")
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [{"bytes": encoded, "path": None}]}, features).save_to_disk(tmp_path / "saved")
    names = [str(tmp_path / name) for name in ("folder", "list.csv", "table.parquet", "x.tar", "saved")]
    process = [sys.executable, "-c", _WITHOUT_TORCH, json.dumps(names)]
    output = subprocess.run(process, capture_output=True, text=True, check=True).stdout
    assert output == "[64, 64, 64, 64, 64, 4] []\n"
