"""One folder of this machine: nothing outside of it is read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from densefeat.base import describe_error
from densefeat.errors import DecodeError
from densefeat.images.folders import LocalFolder, is_hidden
from support.streams import make


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    make(tmp_path, "in/a.png", "in/b/c.png", "secret.png")
    (tmp_path / "in/out").symlink_to(tmp_path)
    (tmp_path / "in/b/up.png").symlink_to("../a.png")
    return LocalFolder(os.path.realpath(tmp_path / "in"))


WAYS: list[Callable[[LocalFolder, str], object]] = [
    LocalFolder.read,
    LocalFolder.open,
    LocalFolder.size,
    lambda folder, name: folder.read_range(name, 0, 1),
]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX links")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../secret.png", "outside of the folder"),
        ("b/../../secret.png", "outside of the folder"),
        ("/etc/passwd", "outside of the folder"),
        ("file:///etc/passwd", "outside of the folder"),
        ("out/secret.png", "a symbolic link out of the folder"),
        ("", "no path"),
        ("b", "a folder that cannot be listed"),
        ("nowhere", "No such file or directory"),
        ("a\0", "embedded null byte"),
        ("caf\udce9", "the name is not valid UTF-8"),
    ],
)
def test_names_that_are_refused(way: Callable, name: str, match: str, folder: LocalFolder) -> None:
    with pytest.raises(DecodeError, match=match) as caught:
        way(folder, name)
    assert caught.value.stage == "read"


def test_files_that_are_read(folder: LocalFolder) -> None:
    assert folder.read("a.png") == folder.read("b/up.png") == b"in/a.png"
    assert folder.size("b/c.png") == 10
    assert folder.read_range("a.png", 3, 5) == b"a.png"
    with pytest.raises(DecodeError, match="5 bytes where 6 were expected"):
        folder.read_range("a.png", 3, 6)
    with pytest.raises(DecodeError, match="bytes are more than the limit"):
        folder.read_range("a.png", 0, 2**40)
    assert folder.path("a.png") == os.path.join(folder.root, "a.png")
    assert folder.path("out/secret.png") is folder.path("../secret.png") is folder.path("caf\udce9") is None
    assert LocalFolder(folder.root, follow_links=True).read("out/secret.png") == b"secret.png"


def test_a_folder_below_has_its_own_bounds(folder: LocalFolder) -> None:
    below = folder.below("b/x.parquet")
    assert below.read("c.png") == b"in/b/c.png"
    with pytest.raises(DecodeError, match="a symbolic link out of the folder"):
        below.read("up.png")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file", "x"), "No such file"),
        (ValueError("one\ntwo"), "one"),
        (PermissionError("Forbidden"), "Forbidden"),
        (KeyError(), "KeyError"),
    ],
)
def test_errors_are_described_in_one_line(error: Exception, reason: str) -> None:
    assert describe_error(error) == reason


@pytest.mark.parametrize(
    ("names", "hidden"),
    [
        ((".ipynb_checkpoints", ".git", "._1.jpg", ".", "__MACOSX", "@eaDir", "@eadir", "#recycle", "$RECYCLE.BIN"), True),
        (("cat", "1.jpg", "_x", "__init__", "@home", "#1", "v.1", "MACOSX", "", "…"), False),
    ],
)
def test_hidden_names(names: tuple[str, ...], hidden: bool) -> None:
    for name in names:
        assert is_hidden(name) is is_hidden(name.encode()) is hidden
