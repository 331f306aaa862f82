"""CSV files of labels: paths in every form that can only mean one thing, and images with two labels."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from densefeat.errors import UsageError
from densefeat.labels.label_file import LabelFile

KEYS = pa.array(["cat/1.jpg", "dog/2.jpg"], pa.large_string())


def write(folder: Path, *paths: str) -> LabelFile:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{path},{label}" for path, label in zip(paths, ("cat", "dog"), strict=True)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]))
    return LabelFile(folder / "labels.csv")


@pytest.mark.parametrize(
    ("place", "paths"),
    [
        ("photos", ["cat/1.jpg", "dog/2.jpg"]),
        ("far", ["cat/1.jpg", "dog/2.jpg"]),
        ("far", ["./cat/1.jpg", "dog//2.jpg"]),
        (".", ["photos/cat/1.jpg", "photos/dog/2.jpg"]),
        ("lists/a", ["../../photos/cat/1.jpg", "../../photos/dog/2.jpg"]),
        ("far", ["cat\\1.jpg", "dog\\2.jpg"]),
        (".", ["photos\\cat\\1.jpg", "photos\\dog\\2.jpg"]),
        (".", ["photos\\cat\\1.jpg", "photos/dog/2.jpg"]),
        ("far", ["{photos}/cat/1.jpg", "{photos}/dog/2.jpg"]),
    ],
)
def test_paths_that_mean_these_images(tmp_path: Path, place: str, paths: list[str]) -> None:
    photos = str(tmp_path / "photos")
    file = write(tmp_path / place, *(path.format(photos=photos) for path in paths)).align(KEYS, [photos])
    assert file.column("label", KEYS) == ["cat", "dog"]
    assert file.find_unmatched(KEYS)["count"] == 0


def test_the_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "photos").symlink_to("real")
    file = write(tmp_path, "real/cat/1.jpg", "real/dog/2.jpg")
    assert file.align(KEYS, [str(tmp_path / "photos")]).column("label", KEYS) == ["cat", "dog"]


def test_accents_as_macos_writes_them(tmp_path: Path) -> None:
    keys = pa.array(["caf\u00e9/1.jpg", "e\u0301/2.jpg"], pa.large_string())  # composed, and not
    for folders in ([], [str(tmp_path / "photos")]):
        file = write(tmp_path, "cafe\u0301/1.jpg", "\u00e9/2.jpg").align(keys, folders)
        assert file.column("label", keys) == ["cat", "dog"]
    file = write(tmp_path, "photos/cafe\u0301/1.jpg", "photos/\u00e9/2.jpg").align(keys, [str(tmp_path / "photos")])
    assert file.column("label", keys) == ["cat", "dog"]


def test_a_backslash_in_a_name_stays(tmp_path: Path) -> None:
    keys = pa.array(["cat\\1.jpg", "cat/1.jpg"], pa.large_string())
    file = write(tmp_path, "cat\\1.jpg", "cat/1.jpg").align(keys, [])
    assert file.column("label", keys) == ["cat", "dog"]


def test_paths_of_which_some_are_read_in_one_way_and_some_in_the_other(tmp_path: Path) -> None:
    file = write(tmp_path, "photos/cat/1.jpg", "dog/2.jpg")
    with pytest.raises(
        UsageError, match="some paths are images relative to .*, others relative to the file: write all of them"
    ):
        file.align(KEYS, [str(tmp_path / "photos")])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.jpg,cat\na.jpg,dog", "'a.jpg' has two values of 'label', 'cat' and 'dog': several labels of an image go into one line, cat|dog"),
        ("a.jpg,cat\n./a.jpg,dog", "'a.jpg' has two values of 'label', 'cat' and 'dog': several labels of an image go into one line, cat|dog"),
        ("a.jpg,cat\na.jpg,", "'a.jpg' has two values of 'label', 'cat' and None"),
    ],
)  # fmt: skip
def test_two_labels_for_one_image(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "l.csv").write_text(f"path,label\n{lines}\n")
    with pytest.raises(UsageError, match=re.escape(message) + "$"):
        LabelFile(tmp_path / "l.csv").column("label", KEYS, labels=True)
