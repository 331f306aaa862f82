"""What was written is recognized, what others wrote is not, and nothing is written through a link."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from densefeat.base.files import atomic_file, check_target, hold_lock
from densefeat.base.ownership import (
    MARKDOWN_MARK,
    has_header,
    has_kind,
    is_markdown,
    is_page,
    is_picture,
    match_temporary,
    recognize_none,
    refuse_links,
)
from densefeat.base.pages import Section, render_page, save_page
from densefeat.base.pictures import save_picture
from densefeat.errors import DensefeatError, OutputError, UsageError


def test_own_files_are_recognized(tmp_path: Path) -> None:
    save_page(tmp_path / "a.html", render_page("<title>", [], [Section("x")]))
    for name in ("a.png", "a.svg"):
        save_picture(Figure(), tmp_path / name)
    (tmp_path / "a.md").write_text(MARKDOWN_MARK + "# a\n")
    (tmp_path / "a.csv").write_text("path,label\r\n1,2\r\n", newline="")
    (tmp_path / "a.json").write_text('{"x": 1, "kind": "densefeat evaluation"}')
    kinds = {
        "a.html": is_page, "a.png": is_picture, "a.svg": is_picture, "a.md": is_markdown, "a.csv": has_header(["path", "label"]),
        "a.json": has_kind("densefeat evaluation"),
    }  # fmt: skip
    for name, is_ours in kinds.items():
        assert [file for file in kinds if is_ours(tmp_path / file)] in ([name], ["a.png", "a.svg"]), name
        assert not is_ours(tmp_path / "no")


@pytest.mark.parametrize(
    ("recognizer", "content"),
    [
        (is_page, ""),
        (is_page, "<html>densefeat</html>"),
        (is_page, '<meta name="generator" content="mkdocs">'),
        (is_picture, "densefeat"),
        (is_picture, "<svg>densefeat</svg>"),
        (is_picture, '<?xml version="1.0"?><svg><title>densefeat</title></svg>'),
        (is_markdown, "# densefeat\n<!-- generator: densefeat -->\n"),
        (has_header(["path"]), ""),
        (has_header(["path"]), "path,label\n"),
        (has_header(["path"]), "\npath\n"),
        (has_kind("a"), ""),
        (has_kind("a"), '["kind", "a"]'),
        (has_kind("a"), '{"kind": ["a"]}'),
        (has_kind("a"), '{"kind": "b"}'),
        (has_kind("a"), '{"kind": "a"'),
        (has_kind("a"), "[" * 100_000),
        (recognize_none, "x"),
    ],
)
def test_others_files_are_not(recognizer: object, content: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    assert not recognizer(path)
    with pytest.raises(UsageError, match="file' exists and was not written by this command: move it away, or give another"):
        check_target(path, recognizer)
    with pytest.raises(UsageError, match="was not written by this command"), atomic_file(path, recognizer):
        pytest.fail("the work began")
    assert path.read_text() == content


def test_pictures_of_other_programs_are_not(tmp_path: Path) -> None:
    Figure().savefig(tmp_path / "a.svg")
    Figure().savefig(tmp_path / "a.png")
    software = PngImagePlugin.PngInfo()
    software.add_text("Software", "Adobe Photoshop")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=software)
    for name in ("a.svg", "a.png", "b.png"):
        with pytest.raises(UsageError, match="was not written by this command"):
            save_picture(Figure(), tmp_path / name)


def test_a_file_that_appears_during_the_work_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UsageError, match="was not written by this command"), atomic_file(path, has_kind("a")) as beside:
        beside.write_text(json.dumps({"kind": "a"}))
        path.write_text("years of work")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "years of work"


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_links_are_not_replaced(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="link' is a symbolic link: remove the link, or give another name"):
        check_target(tmp_path / "link")
    with pytest.raises(UsageError, match="link' is a symbolic link"), hold_lock(tmp_path / "link"):
        pytest.fail("the work began")
    with pytest.raises(UsageError, match="link' is a symbolic link, through which nothing is written"):
        refuse_links([tmp_path / "file", tmp_path / "no", tmp_path / "link"])


@pytest.mark.parametrize(("content", "kind"), [("mine", UsageError), (None, OutputError)])
def test_a_lock_of_others_is_not_held(content: str | None, kind: type[DensefeatError], tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.mkdir() if content is None else lock.write_text(content)
    with pytest.raises(kind, match=r"\.lock'"), hold_lock(lock):
        pytest.fail("the work began")
    assert content is None or lock.read_text() == content


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (".part-00000.parquet.ab_d3fgh.partial", "part-00000.parquet"),
        (".a.b.c.abcdefgh.partial", "a.b.c"),
        (".thesis.pdf.partial", None),
        ("a.abcdefgh.partial", None),
        (".a.ABCDEFGH.partial", None),
        (".a.abcdefgh.part", None),
        ("..abcdefgh.partial", None),
    ],
)
def test_temporary_names(name: str, target: str | None) -> None:
    assert match_temporary(name) == target


def test_a_temporary_file_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("manifest.json", ".lock", "a"):
        with atomic_file(tmp_path / name) as beside:
            assert match_temporary(beside.name) == name
