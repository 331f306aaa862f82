"""Image files: those of a folder, and those that a list names; neither leads out of its folder."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.errors import UsageError
from densefeat.images import files
from densefeat.images.files import ImageFiles, open_folder
from densefeat.images.folders import LocalFolder
from densefeat.images.sources import open_source
from support.streams import make, outcomes, read_source

LINKED = "a linked folder: --follow-links reads it"
IMAGES = ["a.png", "b/c.png", "d e.png"]


def open_files(folder: Path, labels: str | None = None, follow_links: bool = False) -> ImageFiles:
    return open_folder(LocalFolder(os.path.realpath(folder), follow_links), str(folder), labels)


def list_keys(folder: Path, **options: bool) -> list[str]:
    return [os.fsdecode(key) for key in open_files(folder, **options).keys().to_pylist()]


def test_recursive_any_case_sorted_by_path_not_by_folder(tmp_path: Path) -> None:
    names = ["b/1.JPG", "a.png", "B.jpeg", "b/c/2.WebP", "ä b.tiff", "b.bmp", "x.gif", "z.Tif", "slide.SVS"]
    make(tmp_path, *names, "notes.txt", "jpg", "b/1.jpg.part")
    source = open_files(tmp_path)
    assert read_source(source) == [(name, None, name.encode()) for name in sorted(names)]
    assert not source.labelled


def test_paths_and_parts_of_files(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png").joinpath("b.png").symlink_to(make(tmp_path, "out.png") / "out.png")
    inside, outside = open_files(tmp_path / "in").items(0, 2)
    assert inside.path() == str(tmp_path / "in/a.png")
    assert outside.path() is None
    with inside.open() as file:
        file.seek(2)
        assert file.read() == b"png"


def test_labels_are_first_folders(tmp_path: Path) -> None:
    source = open_files(make(tmp_path, "cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", "beside.jpg"), "folder")
    assert [(key, label) for key, label, _ in read_source(source)] == [
        ("beside.jpg", None),
        ("cat/1.jpg", "cat"),
        ("cat/deep/2.jpg", "cat"),
        ("dog/1.jpg", "dog"),
    ]
    assert source.labelled
    assert source.fingerprint() != open_files(tmp_path).fingerprint()


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    assert list_keys(make(tmp_path, "x.jpg/inside.png")) == ["x.jpg/inside.png"]


def test_more_files_than_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"{i % 3}/{i}.png" for i in range(20)))
    in_one = open_files(tmp_path, "folder")
    monkeypatch.setattr("densefeat.images.files._BLOCK", 7)
    assert open_files(tmp_path, "folder").fingerprint() == in_one.fingerprint()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file kinds")
def test_files_that_must_not_be_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "good.png")
    make(tmp_path, "outside/secret.png")
    (folder / "linked.png").symlink_to(tmp_path / "outside/secret.png")
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "linked-folder").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "pipe.png")
    with open(folder / "huge.png", "wb") as sparse:
        sparse.truncate(2**40)
    assert {key: outcome for key, _, outcome in read_source(open_files(folder))} == {
        "good.png": b"good.png",
        "inside.png": b"good.png",
        "linked.png": "a symbolic link out of the folder",
        "dangling.png": "No such file or directory",
        "linked-folder": LINKED,
        "pipe.png": "not a regular file",
        "huge.png": "1,099,511,627,776 bytes are more than the limit of 1,073,741,824",
    }


def test_a_folder_that_cannot_be_listed_is_an_item_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: bytes) -> object:
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    make(tmp_path, "a.png", "closed/b.png")
    monkeypatch.setattr(os, "scandir", refuse)
    assert [(key, outcome) for key, _, outcome in read_source(open_files(tmp_path))] == [
        ("a.png", b"a.png"),
        ("closed", "a folder that cannot be listed"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    folder = tmp_path / os.fsdecode(b"th\xe9")
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    source = open_files(tmp_path, "folder")
    assert source.keys().to_pylist() == [b"caf\xe9.png", b"th\xe9/1.png"]
    assert [(label, outcome) for _, label, outcome in outcomes(source.items(0, 9))] == [
        (None, "the name is not valid UTF-8"),
        ("th\\xe9", "the name is not valid UTF-8"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_are_followed_on_request_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "out/b.png", "in/sub/c.png")
    (tmp_path / "in/linked.png").symlink_to(tmp_path / "out/b.png")
    (tmp_path / "in/other").symlink_to(tmp_path / "out")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/sub/self").symlink_to(".")
    (tmp_path / "out/back").symlink_to(tmp_path / "in/sub")
    assert list_keys(tmp_path / "in") == ["a.png", "linked.png", "other", "sub/c.png"]
    source = open_files(tmp_path / "in", follow_links=True)
    assert [(key, outcome) for key, _, outcome in read_source(source)] == [
        ("a.png", b"in/a.png"),
        ("linked.png", b"out/b.png"),
        ("other/b.png", b"out/b.png"),
        ("other/back/c.png", b"in/sub/c.png"),
        ("sub/c.png", b"in/sub/c.png"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_linked_folders_are_entries_unless_their_files_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "in/cat/1.png", "out/2.png", "in/.store/3.png", "in/deep/cat/4.png")
    links = {
        "dog": "../out",
        "cat/dog": "../../out",
        "same": "deep/cat",
        "bird": ".store",
        ".hidden": "../out",
        "gone": "../no",
    }
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in/notes.txt").symlink_to("../no.txt")
    assert read_source(open_files(tmp_path / "in", "folder")) == [
        ("bird", None, LINKED),
        ("cat/1.png", "cat", b"in/cat/1.png"),
        ("cat/dog", "cat", LINKED),
        ("deep/cat/4.png", "deep", b"in/deep/cat/4.png"),
        ("dog", None, LINKED),
        ("gone", None, "a symbolic link to nothing"),
    ]
    assert "left out: 1 .txt, 2 hidden (.hidden/, .store/), 4 not entered (bird/, cat/dog/, dog/, …)" in caplog.text


HIDDEN = [
    "cat/._1.jpg",
    "cat/.ipynb_checkpoints/1-checkpoint.jpg",
    ".ipynb_checkpoints/2.jpg",
    "__MACOSX/cat/._1.jpg",
    "@eaDir/3.jpg",
]
OTHERS = ["2.jxl", "3.psd", "5.exr", "6", "cat/7.CR2", "8.cr2", "v1.20240101", ".DS_Store", "a.tar"]


def test_files_that_are_left_out_are_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "in", "cat/1.jpg", "4.JFIF", "x.jpe", "y.dib", *HIDDEN, *OTHERS)
    assert list_keys(tmp_path / "in") == ["4.JFIF", "cat/1.jpg", "x.jpe", "y.dib"]
    (record,) = caplog.records
    said = (
        "2 .cr2, 2 without an extension, 1 .exr, 1 .jxl, 1 .psd, 1 .tar, 5 hidden (.ipynb_checkpoints/, @eaDir/, __MACOSX/, …)"
    )
    assert record.getMessage() == f"images {str(tmp_path / 'in')!r}: left out: {said}"
    caplog.clear()
    assert list_keys(tmp_path / "in/cat") == ["1.jpg"]
    assert "left out: 1 .cr2, 2 hidden (._1.jpg, .ipynb_checkpoints/)" in caplog.text


def test_what_is_left_out_is_known_at_the_end(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.pdf", "c.PDF", "d.psd")
    assert open_source(tmp_path).left_out == "2 .pdf, 1 .psd"
    (tmp_path / "list.txt").write_text("a.png\n")
    assert open_source(tmp_path / "list.txt").left_out == ""


def test_a_package_that_files_need_is_named_before_any_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png", "b.heic", "c/d.HEIF")
    (tmp_path / "list.txt").write_text("a.png\nb.heic\n")
    assert open_source(tmp_path).length == 3
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    for name, count in ((".", 2), ("list.txt", 1)):
        with pytest.raises(UsageError, match=rf"{count} HEIC files need a package: pip install 'densefeat\[heif\]'$"):
            open_source(tmp_path / name)
    (tmp_path / "list.txt").write_text("a.png\n")
    assert open_source(tmp_path / "list.txt").length == 1


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
def test_names_that_are_said_command_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.png", ".\x1b[31m/b.png", ".c\n.png", "x.\x1b[1m")
    assert list_keys(tmp_path) == ["a.png"]
    assert r"left out: 1 without an extension, 2 hidden (.\x1b[31m/, .c\n.png)" in caplog.text


def test_kinds_of_files_that_are_said_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.png", *(f"{i}.e{i}" for i in range(20)), "21.e7")
    assert list_keys(tmp_path) == ["a.png"]
    assert "left out: 2 .e7, 1 .e0, 1 .e1, 1 .e10, 1 .e11, 1 .e12, 1 .e13, 1 .e14, 12 of other kinds" in caplog.text


def test_a_hidden_folder_that_the_user_names_is_read(tmp_path: Path) -> None:
    assert list_keys(make(tmp_path, ".cache/in/a.png") / ".cache/in") == ["a.png"]
    (tmp_path / ".cache/list.txt").write_text("in/a.png\n.b.png\n")
    make(tmp_path / ".cache", ".b.png")
    assert [data for _, _, data in read_source(open_source(tmp_path / ".cache/list.txt"))] == [b".cache/in/a.png", b".b.png"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.png", "b.png"], "no image has a label, such as 'a.png': a label is the first folder of its path"),
        (["a.png", "cat/b.png", "dog/c.png"], "1 of 3 images have no label, such as 'a.png'"),
        (["cat/b.png"], None),
    ],
)
def test_images_beside_the_folders_have_no_label(
    names: list[str], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(make(tmp_path, *names), labels="folder")
    assert [label for _, label, _ in read_source(source)] == [name.split("/")[0] if "/" in name else None for name in names]
    assert (said in caplog.text) if said else not caplog.records


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["readme.md"], r"no file with an image's extension \(.jpg"),
        (["a.jxl", "b.jxl", ".c.png"], r"\) in it, but 2 .jxl, 1 hidden \(.c.png\); a list of paths names any files$"),
        (["train.parquet", "readme.md"], r"pass '.*folder/\*\.parquet'"),
        (["deep/er/shard-000.TAR"], r"pass '.*folder/deep/er/\*\.TAR'"),
    ],
)
def test_folders_without_images(names: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        open_files(make(tmp_path / "folder", *names))


def write_list(folder: Path, name: str, text: bytes) -> Path:
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
    source = open_source(write_list(tmp_path, name, text))
    order = ["b/c.png", "a.png", "d e.png"]
    assert read_source(source) == [(key, None, key.encode()) for key in order]


def test_labels_of_csv_are_text_as_write_list(tmp_path: Path) -> None:
    text = b'file,class\na.png,007\nb/c.png,\nd e.png,"NA"\n'
    source = open_source(write_list(tmp_path, "list.csv", text), label_column="class", image_column="file")
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
def test_no_path_in_a_list_leaves_the_folder(tmp_path: Path) -> None:
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
    outside = "outside of the folder; --base names the folder of a list's images"
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
def test_the_base_folder_of_a_list(tmp_path: Path) -> None:
    make(tmp_path / "images", *IMAGES)
    (tmp_path / "linked").symlink_to("images")
    (tmp_path / "list.txt").write_text(f"a.png\n{tmp_path}/linked/b/c.png\n{tmp_path}/images/d e.png\n")
    for base in (tmp_path / "linked", f"file://{tmp_path}/linked"):
        source = open_source(tmp_path / "list.txt", base=base)
        assert read_source(source) == [(key, None, key.encode()) for key in IMAGES]


def test_missing_columns_and_empty_fields(tmp_path: Path) -> None:
    source = open_source(write_list(tmp_path, "list.csv", b"path,label\na.png,x\n,y\na.png,z\n"), label_column="label")
    assert read_source(source) == [
        ("a.png", "x", b"a.png"),
        ("", "y", "no path"),
        ("a.png", "z", "repeated: the same as position 0"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_names_in_lists_that_are_not_utf8(name: str, tmp_path: Path) -> None:
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
        ("empty.csv", b"", {}, "it has no header: the first line names the columns"),
        ("head.csv", b"path\n", {}, "no path in this list"),
        ("x.csv", b"file,class\na.png,1\n", {}, "no column 'path': it has file, class"),
        ("x.csv", b"path,class\na.png,1\n", dict(label_column="label"), "no column 'label': it has path, class"),
        ("x.csv", b"file,class\na.png,1\n", {}, "it has file, class; rename the column of paths, or name it by --image-column"),
        ("x.csv", b"path;class\na.png;1\n", {}, "it has path;class; separate columns by commas in .csv, by tabs in .tsv"),
        ("x.csv", b"Path,class\na.png,1\n", {}, "no column 'path', but 'Path': write 'path' there"),
        (
            "x.csv",
            b"path, label\na.png, 1\n",
            dict(label_column="label"),
            "no column 'label', but ' label': write 'label' there",
        ),
        ("x.csv", b"\xff\xfep\0a\0t\0h\0", {}, "text in UTF-16, as some Windows programs write it: save it as UTF-8"),
        ("x.txt", b"\xfe\xff\0a\0.\0p\0n\0g", {}, "text in UTF-16"),
        (
            "x.txt",
            b"/data/a.png\n../b.png\n",
            {},
            "all paths, such as '/data/a.png', lie outside of '.*/': --base names the folder",
        ),
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


def test_parquet_files_that_are_no_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"path": [1, 2], "file": ["a", "b"], "score": [[0.5], [1.0]]}), path)
    with pytest.raises(UsageError, match="column 'path' holds int64"):
        open_source(path)
    with pytest.raises(UsageError, match="column 'score' holds list<element: double>"):
        open_source(path, image_column="file", label_column="score")
    with pytest.raises(UsageError, match="no column 'picture': it has path, file, score"):
        open_source(path, image_column="picture")


IMAGE = {"bytes": b"x", "path": "x.jpg"}


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"images": [[IMAGE, IMAGE]], "text": ["q"]}, r"images \(list<element: struct<bytes: .*>>\), text \(string\)"),
        ({"sample": [{"image": IMAGE}]}, r"sample \(struct<image: struct<bytes: .*>>\)"),
        ({"image": ["aGVsbG8="], "Path": ["x"]}, r"image \(string\), Path \(string\)"),
        ({f"c{i}": [i] for i in range(30)}, r"c0 \(int64\), .*, c19 \(int64\), …"),
    ],
)
def test_layouts_that_are_not_read_are_named(columns: dict, named: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    rule = "; images are columns of bytes, or structs of bytes and path, not in lists, in other structs or base64"
    with pytest.raises(
        UsageError, match=f"x.parquet': neither encoded images nor a column 'path' of paths: it has {named}{rule}$"
    ):
        open_source(tmp_path / "x.parquet")


def test_a_list_whose_first_files_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A list that is relative to another folder: this is said before the job begins."""
    make(tmp_path / "data", *IMAGES)
    (tmp_path / "list.txt").write_text("\n".join([*(f"{i}.png" for i in range(9)), *IMAGES]))
    open_source(tmp_path / "list.txt")
    assert (
        f"its first paths, such as '0.png', are no files in '{tmp_path}/': --base names the folder of a list's images"
        in caplog.text
    )
    caplog.clear()
    open_source(tmp_path / "list.txt", base=tmp_path / "data")
    assert not caplog.records


def test_lists_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.files._MAX_LIST_BYTES", 10_000)
    pq.write_table(pa.table({"path": ["x" * 1000] * 50}), tmp_path / "bomb.parquet", compression="zstd", use_dictionary=True)
    (tmp_path / "long.txt").write_text("a.png\n" * 2000)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    for name in ("bomb.parquet", "long.txt"):
        with pytest.raises(UsageError, match="a list of more than 10,000 bytes"):
            open_source(tmp_path / name)
