"""Globs, braces, and what keys are relative to."""

from pathlib import Path

import pytest

from densefeat.images.addresses import _expand_braces, parse_address


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
    assert list(_expand_braces(text)) == names


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("/a/b/c.tar", "/a/b"),
        ("/c.tar", ""),
        ("/a/b/*.tar", "/a/b"),
        ("/a/b*/c.tar", "/a"),
        ("/a/{b,c}/d?/e.tar", "/a"),
        ("/a/x{b/c,d}/e.tar", "/a"),
        ("/a/{b}/c.tar", "/a/{b}"),
        ("/a/shard-[0-9].tar", "/a"),
        ("memory://a/{00..03}.tar", "/a"),
        ("https://host/a/x-{0..9}.tar", "https://host/a"),
    ],
)
def test_the_folder_that_names_are_relative_to(text: str, root: str) -> None:
    """It does not depend on which files there are."""
    assert parse_address(text).fixed_folder() == root


def test_a_file_named_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "[x]").mkdir()
    (tmp_path / "[x]/{1..2}.tar").write_bytes(b"")
    assert parse_address(tmp_path / "[x]/{1..2}.tar").fixed_folder() == str(tmp_path / "[x]")
