"""The classes of masks: their names and numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.segmentation.masks import IGNORED, ClassTable, colour_classes, make_table, read_names


def test_numbers_become_classes() -> None:
    table = ClassTable((0, 2, 300), ("sky", "road", "car"), 255)
    values = np.array([[0, 2], [255, 300]])
    assert table.encode(values, Path("m.png")).tolist() == [[0, 1], [IGNORED, 2]]


@pytest.mark.parametrize(
    ("values", "colours"),
    [((0, 1, 3), [[0, 0, 0], [128, 0, 0], [128, 128, 0]]), ((2, 3), [[0, 128, 0], [128, 128, 0]]),
     ((1, 255), [[128, 0, 0], [224, 224, 192]]), ((0, 1000), [[0, 0, 0], [128, 0, 0]]), ((7, 1000), [[128, 0, 0], [0, 128, 0]])],
)  # fmt: skip
def test_only_number_0_is_black(values: tuple[int, ...], colours: list[list[int]]) -> None:
    assert colour_classes(values).tolist() == colours  # as PASCAL VOC's, of the numbers or, beyond 255, of their order


@pytest.mark.parametrize(
    ("value", "ignored", "match"),
    [(1, 255, r"'m.png' has the number 1 .3 pixels., which is none of the 2 classes .0 sky, 2 road.*--ignore 1"),
     (255, None, "number 255"), (-4, None, "number -4"), (70_000, None, "number 70000")],
)  # fmt: skip
def test_a_number_without_a_class_is_refused(value: int, ignored: int | None, match: str) -> None:
    table = ClassTable((0, 2), ("sky", "road"), ignored)
    with pytest.raises(UsageError, match=match):
        table.encode(np.array([[0, value], [value, value]]), Path("m.png"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [("c.txt", "sky\nroad\n", {0: "sky", 1: "road"}), ("c.txt", "\ufeffHimmel\r\nStraße", {0: "Himmel", 1: "Straße"}),
     ("c.json", '["sky", "road"]', {0: "sky", 1: "road"}), ("c.json", '{"255": "defect", "0": "good"}', {0: "good", 255: "defect"})],
)  # fmt: skip
def test_names(tmp_path: Path, name: str, text: str, expected: dict[int, str]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [("c.json", '{"sky": "0"}', "cannot be read"), ("c.json", "[1, 2]", "cannot be read"), ("c.json", "{", "cannot be read"),
     ("c.json", "3", "cannot be read"), ("c.txt", "sky\n\nroad", "'' is empty"), ("c.txt", "sky\nsky", "'sky' is empty or"),
     ("c.json", '{"-1": "a", "2": "b"}', "0 to 65535"), ("c.json", '{"0": "a", "65536": "b"}', "0 to 65535"),
     ("none.txt", None, "cannot be read"), ("c.txt", "\0" * 2**20 + "a", "no list of names")],
)  # fmt: skip
def test_names_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=match):
        read_names(tmp_path / name)


def test_tables() -> None:
    assert make_table(None, [0, 3, 255], 255)[0] == ClassTable((0, 3), ("0", "3"), 255)
    table, notes = make_table(None, [0, 3, 255], None)
    assert (table.values, len(notes)) == ((0, 3, 255), 1)  # 255 may be no class, and is named
    assert make_table(None, [0, 255], None) == (ClassTable((0, 255), ("0", "255")), [])
    for names, found, match in ((None, [3], "1 classes .3."), (dict.fromkeys(range(300), "a"), [], "300 classes")):
        with pytest.raises(UsageError, match=match):
            make_table(names, found, None)


def test_json_names_survive_a_round_trip(tmp_path: Path) -> None:
    names = {0: "background", 11: "naïve \u202e name"}
    (tmp_path / "c.json").write_text(json.dumps({str(number): name for number, name in names.items()}))
    assert read_names(tmp_path / "c.json") == names
