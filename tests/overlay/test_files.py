"""Names of pictures, and the pictures of a store's rows: safe, of the right images, gone on with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import densefeat
from densefeat.errors import DensefeatError
from densefeat.images import Preprocessing
from densefeat.overlay import lay_heat, name_files, save_overlays, view_input, view_whole
from densefeat.store import ImageEntry
from support.helpers import BUNDLED


def names(*keys: str, **place: int) -> list[str]:
    return name_files([ImageEntry(key, **place) for key in keys])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a/b.jpg", "c.tif"], ["a/b.png", "c.png"]),
        (["a.jpg", "a.png", "b.png"], ["0_a.png", "1_a.png", "b.png"]),
        (["a.jpg", "A.jpg"], ["0_a.png", "1_A.png"]),
        (["x/a.jpg", "x/a.png"], ["x/0_a.png", "x/1_a.png"]),
        (["../a.jpg", "/etc/a.jpg", "x/../../a.jpg"], ["0.png", "etc/a.png", "2.png"]),
        ([".hidden/a.jpg", "a:b?.jpg", "a\nb.jpg"], ["_hidden/a.png", "a_b_.png", "a_b.png"]),
        (["a.jpg", "a.png", "0_a.jpg"], ["0.png", "1.png", "2.png"]),
        (["", "x" * 300 + ".jpg", "\udcff.jpg"], ["0.png", "1.png", "_.png"]),
        (["a.tar.gz/b.c.jpg"], ["a.tar.gz/b.c.png"]),
    ],
)
def test_names(keys: list[str], expected: list[str]) -> None:
    assert names(*keys) == expected


def test_tiles_and_pages_have_their_place_in_the_name() -> None:
    assert names("a.tif", x=512, y=0, page=3) == ["a_p3_512,0.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose left half has a grey value of their own, of a size of their own."""
    folder = tmp_path_factory.mktemp("grey")
    for i in range(5):
        pixels = np.full((40 + 8 * i, 64, 3), 40 * (i + 1), np.uint8)
        pixels[:, 32:] = 255
        path = folder / f"{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> densefeat.Store:
    out = tmp_path_factory.mktemp("store") / "out"
    densefeat.extract(folder, out, BUNDLED, blocks=3, device="cpu")
    return densefeat.open_store(out)


def tell_value(image: Image.Image, values: dict[str, np.ndarray]) -> Image.Image:
    """A picture as large as the image, of its first pixel and of the row's first feature."""
    first = np.uint8(abs(values["block3"][0] * 1000) % 256)
    return Image.fromarray(np.full((image.height, image.width, 3), (*np.asarray(image)[0, 0, :2], first), np.uint8))


def test_each_row_gets_a_picture_of_its_own_image(store: densefeat.Store, folder: Path, tmp_path: Path) -> None:
    assert save_overlays(store, folder, tmp_path / "maps", ["block3"], view_whole, tell_value) == {}
    features = store["block3"]
    for row, path in enumerate(store["path"]):
        picture = np.asarray(Image.open(tmp_path / "maps" / path))
        number = int(Path(path).stem)
        assert picture.shape == (40 + 8 * number, 64, 3)
        grey = 40 * (number + 1)
        assert picture[0, 0].tolist() == [grey, grey, np.uint8(abs(features[row, 0] * 1000) % 256)]


def test_what_is_missing_is_made_and_nothing_else(store: densefeat.Store, folder: Path, tmp_path: Path) -> None:
    def save() -> dict[str, str]:
        return save_overlays(store, folder, tmp_path, ["block3"], view_whole, tell_value)

    save()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(made) == 5
    (tmp_path / "a/2.png").unlink()
    save()
    assert [path.name for path in made if path.stat().st_mtime_ns != made[path]] == ["2.png"]


def test_pictures_of_other_rows_are_made_again(store: densefeat.Store, folder: Path, tmp_path: Path) -> None:
    densefeat.extract(folder, tmp_path / "other", BUNDLED, blocks=3, device="cpu", image_size=40)
    save_overlays(store, folder, tmp_path / "maps", ["block3"], view_whole, tell_value)
    before = (tmp_path / "maps/a/2.png").read_bytes()
    other = densefeat.open_store(tmp_path / "other")
    save_overlays(other, folder, tmp_path / "maps", ["block3"], view_whole, tell_value)
    assert (tmp_path / "maps/a/2.png").read_bytes() != before


def test_images_that_are_gone_or_broken_are_told(store: densefeat.Store, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images"
    for path in folder.rglob("*.png"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy / "a/0.png").unlink()
    (copy / "b/1.png").write_bytes(b"no image")
    failures = save_overlays(store, copy, tmp_path / "maps", ["block3"], view_whole, tell_value)
    assert sorted(failures) == ["a/0.png", "b/1.png"]
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 3


@pytest.mark.parametrize("kind", ["file", "link", "folder link"])
def test_strangers_stay(store: densefeat.Store, folder: Path, tmp_path: Path, kind: str) -> None:
    maps, elsewhere = tmp_path / "maps", tmp_path / "elsewhere"
    for place in (maps, elsewhere):
        place.mkdir()
    if kind == "folder link":
        (maps / "a").symlink_to(elsewhere)
    else:
        (maps / "a").mkdir()
        (elsewhere / "mine.png").write_bytes(b"mine")
        if kind == "file":
            (maps / "a/0.png").write_bytes(b"mine")
        else:
            (maps / "a/0.png").symlink_to(elsewhere / "mine.png")
    with pytest.raises(DensefeatError, match="symbolic link|was not written by this command"):
        save_overlays(store, folder, maps, ["block3"], view_whole, tell_value)
    assert [path.read_bytes() for path in elsewhere.iterdir()] in ([], [b"mine"])
    assert not list(maps.rglob("*.json"))


def test_the_input_is_shown_cropped(store: densefeat.Store, folder: Path, tmp_path: Path) -> None:
    preprocessing = Preprocessing.from_json(store.provenance["preprocessing"], "store")

    def draw(image: Image.Image, values: dict[str, np.ndarray]) -> Image.Image:
        return image

    save_overlays(store, folder, tmp_path, [], view_input(preprocessing), draw)
    picture = np.asarray(Image.open(tmp_path / "a/4.png"))
    expected = densefeat.FeatureExtractor(BUNDLED, device="cpu").prepare([folder / "a/4.png"])
    assert picture.shape == (preprocessing.size, preprocessing.size, 3)
    normalised = preprocessing.normalize(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()))
    assert (normalised - expected).abs().max() < 0.03  # Pillow and torchvision round differently


def test_heat_lies_where_its_values_are() -> None:
    image = Image.new("RGB", (80, 40), (128, 128, 128))
    values = np.zeros((4, 8), np.float32)
    values[1, 6] = 1
    heat = np.asarray(lay_heat(image, values, 0, 1)).astype(int)
    y, x = np.unravel_index(heat.sum(2).argmax(), (40, 80))
    assert (10 <= y < 20, 60 <= x < 70) == (True, True)
    assert (heat[0, 0] == heat[39, 0]).all()
    signed = np.asarray(lay_heat(image, values - 0.5, -0.5, 0.5, signed=True)).astype(int)
    assert signed[15, 65, 0] > signed[15, 65, 2]  # red
    assert signed[0, 0, 2] > signed[0, 0, 0]  # blue
