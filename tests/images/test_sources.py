"""A folder as an ordered list of files, and reading them."""

import os
from pathlib import Path

import pytest

from densefeat import UsageError
from densefeat.errors import DecodeError
from densefeat.images.sources import find_images


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_recursive_any_case_sorted_by_path_not_by_folder(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b/1.JPG",
        "a.png",
        "B.jpeg",
        "b/c/2.WebP",
        "ä b.tiff",
        "b.bmp",
        "x.gif",
        "z.Tif",
        "notes.txt",
        "jpg",
        "b/1.jpg.part",
    )
    keys = [file.key for file in find_images(tmp_path)]
    assert keys == ["B.jpeg", "a.png", "b.bmp", "b/1.JPG", "b/c/2.WebP", "x.gif", "z.Tif", "ä b.tiff"]
    assert find_images(tmp_path)[3].read() == b"b/1.JPG"


def test_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "x.jpg/inside.png")
    assert [file.key for file in find_images(tmp_path)] == ["x.jpg/inside.png"]


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
    reasons = {}
    for file in find_images(folder):
        try:
            file.read()
        except DecodeError as error:
            assert error.stage == "read"
            reasons[file.key] = str(error)
    assert reasons == {
        "linked.png": "a symbolic link out of the folder",
        "dangling.png": "No such file or directory",
        "pipe.png": "not a regular file",
        "huge.png": "1,099,511,627,776 bytes are more than the limit of 1,073,741,824",
    }


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (file,) = find_images(tmp_path)
    assert file.printable_key == "caf\\xe9.png"
    with pytest.raises(DecodeError, match="not valid UTF-8"):
        file.read()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "no such folder"),
        ("file.txt", "is a file, not a folder"),
        ("empty", r"no file with an image's extension \(.jpg"),
    ],
)
def test_wrong_folders(name: str, match: str, tmp_path: Path) -> None:
    make(tmp_path, "file.txt", "empty/readme.md")
    with pytest.raises(UsageError, match=match):
        find_images(tmp_path / name)
