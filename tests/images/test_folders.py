"""A folder as an ordered list of files, and reading them."""

import os
from pathlib import Path

import pytest

from densefeat.errors import UsageError
from densefeat.images.files import ImageFiles, open_folder
from densefeat.images.folders import LocalFolder
from support.streams import make, outcomes, read_source


def files_of(folder: Path, labels: str | None = None, follow_links: bool = False) -> ImageFiles:
    return open_folder(LocalFolder(os.path.realpath(folder), follow_links), str(folder), labels)


def keys_of(folder: Path, **options: bool) -> list[str]:
    return [os.fsdecode(key) for key in files_of(folder, **options).keys().to_pylist()]


def test_recursive_any_case_sorted_by_path_not_by_folder(tmp_path: Path) -> None:
    names = ["b/1.JPG", "a.png", "B.jpeg", "b/c/2.WebP", "ä b.tiff", "b.bmp", "x.gif", "z.Tif", "slide.SVS"]
    make(tmp_path, *names, "notes.txt", "jpg", "b/1.jpg.part")
    source = files_of(tmp_path)
    assert read_source(source) == [(name, None, name.encode()) for name in sorted(names)]
    assert not source.labelled


def test_paths_and_parts_of_files(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png").joinpath("b.png").symlink_to(make(tmp_path, "out.png") / "out.png")
    inside, outside = files_of(tmp_path / "in").items(0, 2)
    assert inside.path() == str(tmp_path / "in/a.png")
    assert outside.path() is None
    with inside.open() as file:
        file.seek(2)
        assert file.read() == b"png"


def test_labels_are_the_first_folders(tmp_path: Path) -> None:
    source = files_of(make(tmp_path, "cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", "beside.jpg"), "folder")
    assert [(key, label) for key, label, _ in read_source(source)] == [
        ("beside.jpg", None),
        ("cat/1.jpg", "cat"),
        ("cat/deep/2.jpg", "cat"),
        ("dog/1.jpg", "dog"),
    ]
    assert source.labelled
    assert source.fingerprint() != files_of(tmp_path).fingerprint()


def test_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    assert keys_of(make(tmp_path, "x.jpg/inside.png")) == ["x.jpg/inside.png"]


def test_more_files_than_are_gathered_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"{i % 3}/{i}.png" for i in range(20)))
    in_one = files_of(tmp_path, "folder")
    monkeypatch.setattr("densefeat.images.files._BLOCK", 7)
    assert files_of(tmp_path, "folder").fingerprint() == in_one.fingerprint()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file kinds")
def test_what_must_not_be_read_fails_with_its_reason(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "good.png")
    make(tmp_path, "outside/secret.png")
    (folder / "linked.png").symlink_to(tmp_path / "outside/secret.png")
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "linked-folder").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "pipe.png")
    with open(folder / "huge.png", "wb") as sparse:
        sparse.truncate(2**40)
    assert {key: outcome for key, _, outcome in read_source(files_of(folder))} == {
        "good.png": b"good.png",
        "inside.png": b"good.png",
        "linked.png": "a symbolic link out of the folder",
        "dangling.png": "No such file or directory",
        "pipe.png": "not a regular file",
        "huge.png": "1,099,511,627,776 bytes are more than the limit of 1,073,741,824",
    }


def test_a_folder_that_cannot_be_listed_is_an_item_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: bytes) -> object:
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    make(tmp_path, "a.png", "closed/b.png")
    monkeypatch.setattr(os, "scandir", refuse)
    assert [(key, outcome) for key, _, outcome in read_source(files_of(tmp_path))] == [
        ("a.png", b"a.png"),
        ("closed", "a folder that cannot be listed"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    folder = tmp_path / os.fsdecode(b"th\xe9")
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    source = files_of(tmp_path, "folder")
    assert source.keys().to_pylist() == [b"caf\xe9.png", b"th\xe9/1.png"]
    assert [(label, outcome) for _, label, outcome in outcomes(source.items(0, 9))] == [
        (None, "the name is not valid UTF-8"),
        ("th\\xe9", "the name is not valid UTF-8"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_are_followed_where_asked_for_without_end(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "out/b.png", "in/sub/c.png")
    (tmp_path / "in/linked.png").symlink_to(tmp_path / "out/b.png")
    (tmp_path / "in/other").symlink_to(tmp_path / "out")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/sub/self").symlink_to(".")
    (tmp_path / "out/back").symlink_to(tmp_path / "in/sub")
    assert keys_of(tmp_path / "in") == ["a.png", "linked.png", "sub/c.png"]
    source = files_of(tmp_path / "in", follow_links=True)
    assert [(key, outcome) for key, _, outcome in read_source(source)] == [
        ("a.png", b"in/a.png"),
        ("linked.png", b"out/b.png"),
        ("other/b.png", b"out/b.png"),
        ("other/back/c.png", b"in/sub/c.png"),
        ("sub/c.png", b"in/sub/c.png"),
    ]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["readme.md"], r"no file with an image's extension \(.jpg"),
        (["train.parquet", "readme.md"], r"pass '.*folder/\*\.parquet'"),
        (["deep/er/shard-000.TAR"], r"pass '.*folder/deep/er/\*\.TAR'"),
    ],
)
def test_folders_without_images(names: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        files_of(make(tmp_path / "folder", *names))
