"""Masks: their kinds of PNG, and the images that they are of."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.labels import find_masks, read_mask

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
        (["x/a.jpg", "x/b.jpg"], ["x/a_mask.png", "x/b.png"], {"x/a.jpg": "x/a_mask.png", "x/b.jpg": "x/b.png"}, 0),
        (["a.jpg", "a_mask.jpg"], ["a_mask.png"], {"a_mask.jpg": "a_mask.png"}, 1),
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
     (["x/a.jpg", "y/a.jpg"], ["a.png"], "have one name"), (["a.jpg"], ["a.png", "a.PNG"], "masks .* have one name"),
     (["a.jpg"], ["a.png", "a_mask.png"], "masks .* have one name"), (["good/1.jpg"], ["bad/1.png"], "no image has a mask")],
)  # fmt: skip
def test_masks_that_fit_no_image_or_several(tmp_path: Path, keys: list[str], masks: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_masks(keys, write_masks(tmp_path, *masks))


def test_no_folder_of_masks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_masks(["a.jpg"], tmp_path / "none")
