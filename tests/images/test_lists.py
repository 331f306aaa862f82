"""Lists of paths: what they may look like, and that they lead nowhere but into their folder."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat import UsageError
from densefeat.images.sources import open_source
from support.streams import make, read_source

IMAGES = ["a.png", "b/c.png", "d e.png"]


def written(folder: Path, name: str, text: bytes) -> Path:
    make(folder, *IMAGES)
    (folder / name).write_bytes(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", b"b/c.png\n\na.png\nd e.png"),
        ("list.LST", b"\xef\xbb\xbfb/c.png\r\n  \r\na.png\r\nd e.png\r\n"),
        ("list.csv", b"path\nb/c.png\n\na.png\nd e.png\n"),
        ("list.csv", b'\xef\xbb\xbfn,path\r\n1,"b/c.png"\r\n2,"a.png"\r\n3,d e.png\r\n'),
        ("list.csv", b'caption,path\n"two\nlines, quoted",b/c.png\nx,a.png\ny,"d e.png"\n'),
        ("list.tsv", b"path\tcaption\nb/c.png\ta,b\na.png\tx\nd e.png\t\n"),
    ],
)
def test_the_order_of_the_list(name: str, text: bytes, tmp_path: Path) -> None:
    source = open_source(written(tmp_path, name, text))
    order = ["b/c.png", "a.png", "d e.png"]
    assert read_source(source) == [(key, None, key.encode()) for key in order]


def test_labels_of_csv_are_text_as_written(tmp_path: Path) -> None:
    text = b'file,class\na.png,007\nb/c.png,\nd e.png,"NA"\n'
    source = open_source(written(tmp_path, "list.csv", text), label_column="class", image_column="file")
    assert [(key, label) for key, label, _ in read_source(source)] == [("a.png", "007"), ("b/c.png", None), ("d e.png", "NA")]


def test_parquet_lists_and_names_of_classes(tmp_path: Path) -> None:
    make(tmp_path, *IMAGES)
    features = {"class": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "n": {"dtype": "int64", "_type": "Value"}}
    table = pa.table(
        {
            "path": pa.array(IMAGES).dictionary_encode(),
            "file": pa.array(IMAGES, pa.large_string()),
            "class": pa.array([1, None, 0]),
            "n": pa.array([3, None, 0], pa.uint8()),
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "list.parquet")

    def labels(column: str, **options: str) -> list[str | None]:
        found = read_source(open_source(tmp_path / "list.parquet", label_column=column, **options))
        assert [(key, data) for key, _, data in found] == [(key, key.encode()) for key in IMAGES]
        return [label for _, label, _ in found]

    assert labels("class") == ["dog", None, "cat"]
    assert labels("n", image_column="file") == ["3", None, "0"]
    assert labels("kind") == ["x", None, "x"]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths and links")
def test_no_entry_leaves_the_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", *IMAGES)
    make(tmp_path, "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    entries = [
        f"{folder}/a.png",
        "./b//c.png",
        "b/../d e.png",
        "../secret.png",
        f"{tmp_path}/secret.png",
        "b/../../secret.png",
        "link.png",
        "missing.png",
        "file:///etc/passwd",
        "b",
        "a\0.png",
        f"{folder}/../secret.png",
    ]
    (folder / "list.txt").write_text("\n".join(entries))
    outside = "outside of the folder"
    assert [(key, outcome) for key, _, outcome in read_source(open_source(folder / "list.txt"))] == [
        ("a.png", b"a.png"),
        ("b/c.png", b"b/c.png"),
        ("d e.png", b"d e.png"),
        ("../secret.png", outside),
        (f"{tmp_path}/secret.png", outside),
        ("../secret.png", "repeated: the same as position 3"),
        ("link.png", "a symbolic link out of the folder"),
        ("missing.png", "No such file or directory"),
        ("file:///etc/passwd", outside),
        ("b", "a folder that cannot be listed"),
        ("a\0.png", "embedded null byte"),
        (f"{tmp_path}/secret.png", "repeated: the same as position 4"),
    ]
    followed = open_source(folder / "list.txt", follow_links=True)
    assert [outcome for _, _, outcome in read_source(followed)][3:7] == [outside, outside, "repeated: the same as position 3", b"secret.png"]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_base(tmp_path: Path) -> None:
    make(tmp_path / "images", *IMAGES)
    (tmp_path / "linked").symlink_to("images")
    (tmp_path / "list.txt").write_text(f"a.png\n{tmp_path}/linked/b/c.png\n{tmp_path}/images/d e.png\n")
    for base in (tmp_path / "linked", f"file://{tmp_path}/linked"):
        source = open_source(tmp_path / "list.txt", base=base)
        assert read_source(source) == [(key, None, key.encode()) for key in IMAGES]


def test_what_is_not_there_in_columns(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, "list.csv", b"path,label\na.png,x\n,y\na.png,z\n"), label_column="label")
    assert read_source(source) == [
        ("a.png", "x", b"a.png"),
        ("", "y", "no path"),
        ("a.png", "z", "repeated: the same as position 0"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_names_that_are_not_utf8(name: str, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (tmp_path / name).write_bytes(b"path\ncaf\xe9.png\n")
    source = open_source(tmp_path / name)
    assert read_source(source)[-1] == (os.fsdecode(b"caf\xe9.png"), None, "the name is not valid UTF-8")


@pytest.mark.parametrize(
    ("name", "text", "options", "match"),
    [
        ("none.txt", None, {}, "none.txt': no such file"),
        ("none.csv", None, {}, "none.csv': no such file"),
        ("empty.txt", b"\n  \n", {}, "no path in this list"),
        ("empty.csv", b"", {}, "Empty CSV file"),
        ("head.csv", b"path\n", {}, "no path in this list"),
        ("x.csv", b"file,class\na.png,1\n", {}, "no column 'path': it has file, class"),
        ("x.csv", b"path,class\na.png,1\n", dict(label_column="label"), "no column 'label': it has path, class"),
        ("x.csv", b"path,path\na.png,1\n", {}, "more than one column 'path'"),
        ("x.csv", b"path,class\na.png\n", {}, "Expected 2 columns, got 1"),
        ("x.txt", b"a.png\n", dict(label_column="class"), "a text file has no columns, such as 'class'"),
        ("x.txt", b"a.png\n", dict(base="nowhere"), "base 'nowhere': no such folder"),
        ("x.txt", b"a.png\n", dict(labels="folder"), "labels 'folder' is not for a list"),
    ],
)
def test_wrong_lists(name: str, text: bytes | None, options: dict[str, str], match: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(UsageError, match=match):
        open_source(tmp_path / name, **options)


def test_parquet_lists_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"path": [1, 2], "file": ["a", "b"], "score": [0.5, 1.0]}), path)
    with pytest.raises(UsageError, match="column 'path' holds int64"):
        open_source(path)
    with pytest.raises(UsageError, match="column 'score' holds double"):
        open_source(path, image_column="file", label_column="score")
    with pytest.raises(UsageError, match="no column 'picture': it has path, file, score"):
        open_source(path, image_column="picture")


def test_lists_longer_than_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.files._MAX_LIST_BYTES", 10_000)
    pq.write_table(pa.table({"path": ["x" * 1000] * 50}), tmp_path / "bomb.parquet", compression="zstd", use_dictionary=True)
    (tmp_path / "long.txt").write_text("a.png\n" * 2000)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    for name in ("bomb.parquet", "long.txt"):
        with pytest.raises(UsageError, match="a list of more than 10,000 bytes"):
            open_source(tmp_path / name)
