"""Masks of new images: numbers, sizes, palettes, broken images, resuming."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import UsageError
from densefeat.overlay import make_palette
from densefeat.segmentation import load_segmenter, predict_masks
from densefeat.segmentation.grid_net import choose_classes
from densefeat.store import open_store
from support.segments import probe_textures, write_textures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of masks with the numbers 0 and 255, and new images of other sizes, one of which is broken."""
    folder = tmp_path_factory.mktemp("masks")
    write_textures(folder, 6)
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
    (folder / "names.json").write_text('{"0": "noise, dark", "255": "stripes"}')
    probe_textures(folder, folder / "out", classes=folder / "names.json", ignore=None)
    write_textures(folder / "new", 3, ((90, 40), (33, 65)))
    (folder / "new/images/1.5.png").write_bytes(b"no image")
    predict_masks(folder / "out", folder / "new/images", folder / "predicted", device="cpu")
    return folder


def test_masks_are_those_of_the_scores(folder: Path) -> None:
    out, palette = folder / "predicted", make_palette(256)
    store = open_store(out / "logits")
    assert store.keys.tolist() == ["0.png", "1.png", "2.png"]
    assert [failure.path for failure in store.failures] == ["1.5.png"]
    network = load_segmenter(folder / "out").network(device="cpu")
    for row, key in enumerate(store.keys):
        image, mask = Image.open(folder / "new/images" / key), Image.open(out / "masks" / key)
        assert (mask.mode, mask.size) == ("P", image.size)
        numbers = np.asarray(mask)
        scores = network(network.extractor.prepare([folder / "new/images" / key]))[0].numpy()
        np.testing.assert_allclose(store.read("logits", row, row + 1).reshape(scores.shape), scores, atol=2e-3)
        assert (numbers == np.array([0, 255])[choose_classes(scores, image.height, image.width)]).mean() > 0.99
        truth = np.asarray(Image.open(folder / "new/masks" / key))
        known = truth != 255
        assert ((numbers == 255) == (truth == 1))[known].mean() > 0.85
        assert np.array(mask.getpalette()).reshape(-1, 3)[255].tolist() == palette[255].tolist()
        overlay = np.asarray(Image.open(out / "overlays" / key))
        plain = np.asarray(image.convert("RGB"))
        assert (overlay[numbers == 0] == plain[numbers == 0]).all()
        assert (overlay[numbers == 255] != plain[numbers == 255]).any(1).all()
        image.close(), mask.close()


def test_the_table_has_shares_of_pixels(folder: Path) -> None:
    with open(folder / "predicted/shares.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "noise, dark", "stripes"]
    for path, *shares in rows:
        mask = np.asarray(Image.open(folder / "predicted/masks" / path))
        assert [float(share) for share in shares] == pytest.approx([(mask == 0).mean(), (mask == 255).mean()], rel=1e-5)


def test_the_same_call_makes_what_is_missing(folder: Path) -> None:
    out = folder / "predicted"
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.png"))}
    table = (out / "shares.csv").read_bytes()
    (out / "masks/1.png").unlink()
    (out / "overlays/2.png").unlink()
    (out / "shares.csv").unlink()
    result = predict_masks(folder / "out", folder / "new/images", out, device="cpu")
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.png"))} == before
    assert (out / "shares.csv").read_bytes() == table
    assert (result.rows, result.failures, result.not_drawn) == (3, 1, {})
    assert sum(result.shares.values()) == pytest.approx(1)


def test_another_segmenter_is_not_continued(folder: Path, tmp_path: Path) -> None:
    probe_textures(folder, tmp_path / "other", classes=folder / "names.json", ignore=None, seed=1)
    with pytest.raises(UsageError, match="model|weights"):
        predict_masks(tmp_path / "other", folder / "new/images", folder / "predicted", device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [("thesis.tex", "mine", "holds other files than masks .'thesis.tex'"), ("shares.csv", "mine", "was not written by this"),
     ("masks", "mine", "masks' was not written by this command")],
)  # fmt: skip
def test_other_peoples_files(folder: Path, tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=match):
        predict_masks(folder / "out", folder / "new/images", tmp_path, device="cpu")
    assert (tmp_path / name).read_text() == content


def test_numbers_beyond_a_byte_are_grey_of_16_bits(tmp_path: Path) -> None:
    write_textures(tmp_path, 5)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 1000, 7).astype(np.uint16)).save(path)
    probe_textures(tmp_path, tmp_path / "out")
    predict_masks(tmp_path / "out", tmp_path / "images", tmp_path / "predicted", device="cpu")
    mask = np.asarray(Image.open(tmp_path / "predicted/masks/0.png"))
    assert (mask.dtype, set(np.unique(mask).tolist())) == (np.uint16, {7, 1000})
    overlay = np.asarray(Image.open(tmp_path / "predicted/overlays/0.png"))
    plain = np.asarray(Image.open(tmp_path / "images/0.png"))
    assert (overlay != plain).any(-1).mean() > 0.95  # neither number is 0, so both have a colour
