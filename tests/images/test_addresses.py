"""Globs, braces and common folders."""

import pytest

from densefeat.images.addresses import common_folder, expand_braces


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{3..1}", []),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{,y}", ["x", "xy"]),
        ("{a}{", ["{a}{"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert list(expand_braces(text)) == names


@pytest.mark.parametrize(
    ("paths", "root", "names"),
    [
        (["/a/b/c"], "/a/b", ["c"]),
        (["/c"], "", ["c"]),
        (["/a/bc/x", "/a/b/y"], "/a", ["bc/x", "b/y"]),
        (["/a/b/x", "/a/b/c/y", "/a/b/d/z"], "/a/b", ["x", "c/y", "d/z"]),
        (["/a/x", "/a.b/x", "/a/y"], "", ["a/x", "a.b/x", "a/y"]),
        (["https://host/a/x", "https://host/b/x"], "https://host", ["a/x", "b/x"]),
    ],
)
def test_the_folder_of_all(paths: list[str], root: str, names: list[str]) -> None:
    assert common_folder(paths) == (root, names)
