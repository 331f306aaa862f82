"""Masks: their kinds of PNG, the names of classes, and the images that they are of."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.segmentation.masks import IGNORED, ClassTable, find_masks, make_table, read_mask, read_names

VALUES = np.array([[0, 1, 2], [2, 7, 255]], np.uint8)


def make_mask(mode: str) -> Image.Image:
    if mode == "P":
        image = Image.fromarray(VALUES).convert("L")
        image.putpalette(np.arange(768, dtype=np.uint16).astype(np.uint8).tobytes())  # whose colours are not the numbers
        return image
    if mode == "I;16":
        return Image.fromarray(VALUES.astype(np.uint16) * 100)
    return Image.fromarray(VALUES).convert(mode)


@pytest.mark.parametrize(("mode", "factor"), [("P", 1), ("L", 1), ("I;16", 100)])
def test_numbers_of_masks(tmp_path: Path, mode: str, factor: int) -> None:
    make_mask(mode).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (3, 2)), VALUES.astype(int) * factor)


def test_a_mask_of_one_bit_has_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(VALUES > 1).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), VALUES > 1)


@pytest.mark.parametrize(
    ("mode", "size", "match"),
    [("RGB", None, "colours .RGB.: save the number"), ("RGBA", None, "colours"), ("LA", None, "colours"),
     ("L", (2, 3), "m.png' has 3×2 pixels, its image 2×3")],
)  # fmt: skip
def test_masks_that_cannot_be_used(tmp_path: Path, mode: str, size: tuple[int, int] | None, match: str) -> None:
    make_mask(mode).save(tmp_path / "m.png")
    with pytest.raises(UsageError, match=match):
        read_mask(tmp_path / "m.png", size)


@pytest.mark.parametrize("content", ["cut", "jpeg", "nothing"])
def test_damaged_masks(tmp_path: Path, content: str) -> None:
    make_mask("L").resize((300, 200)).save(tmp_path / "m.png", "JPEG" if content == "jpeg" else "PNG")
    data = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(data if content == "jpeg" else data[: len(data) // 2 if content == "cut" else 0])
    with pytest.raises(DecodeError):
        read_mask(tmp_path / "m.png")


def test_numbers_become_classes() -> None:
    table = ClassTable((0, 2, 300), ("sky", "road", "car"), 255)
    values = np.array([[0, 2], [255, 300]])
    assert table.encode(values, Path("m.png")).tolist() == [[0, 1], [IGNORED, 2]]


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


def write_masks(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_mask("L").save(folder / name, "PNG")
    return folder


@pytest.mark.parametrize(
    ("keys", "masks", "expected", "notes"),
    [
        (["a.jpg", "b.tif"], ["a.png", "b.PNG"], {"a.jpg": "a.png", "b.tif": "b.PNG"}, 0),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"], {"x/a.jpg": "x/a.png", "y/a.jpg": "y/a.png"}, 0),
        (["/data/x/a.jpg", "/data/b.jpg"], ["a.png", "b.png"], {"/data/x/a.jpg": "a.png", "/data/b.jpg": "b.png"}, 0),
        (["a.jpg", "b.jpg", "c.jpg"], ["a.png", "d.png"], {"a.jpg": "a.png"}, 2),
        (["a.b.jpg", "a.c.jpg"], ["a.b.png", ".a.c.png"], {"a.b.jpg": "a.b.png"}, 1),
    ],
)
def test_masks_of_images(tmp_path: Path, keys: list[str], masks: list[str], expected: dict[str, str], notes: int) -> None:
    found = find_masks(keys, write_masks(tmp_path, *masks))
    assert {key: path.relative_to(tmp_path).as_posix() for key, path in found.by_key.items()} == expected
    assert (list(found.by_key), len(found.notes)) == ([key for key in keys if key in expected], notes)
    assert found.whole == (len(expected) == len(keys))


@pytest.mark.parametrize(
    ("keys", "masks", "match"),
    [(["a.jpg", "a.png"], ["a.png"], "images 'a.jpg' and 'a.png' have one name"), (["a.jpg"], ["b.png"], "first image is 'a.jpg'"),
     (["x/a.jpg", "y/a.jpg"], ["a.png"], "have one name"), (["a.jpg"], ["a.png", "a.PNG"], "masks .* have one name")],
)  # fmt: skip
def test_masks_that_fit_no_image_or_several(tmp_path: Path, keys: list[str], masks: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_masks(keys, write_masks(tmp_path, *masks))


def test_no_folder_of_masks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_masks(["a.jpg"], tmp_path / "none")


def test_json_names_survive_a_round_trip(tmp_path: Path) -> None:
    names = {0: "background", 11: "naïve \u202e name"}
    (tmp_path / "c.json").write_text(json.dumps({str(number): name for number, name in names.items()}))
    assert read_names(tmp_path / "c.json") == names
