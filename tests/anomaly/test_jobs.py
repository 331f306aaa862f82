"""From good images to a detector to scores: a planted defect is found at its place, whatever else lies among the images."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import densefeat
from densefeat.anomaly import Scored, fit_detector, load_detector, score_images
from densefeat.errors import UsageError, WeightsError
from support.helpers import BUNDLED
from support.tiny_net import TINY, write_tiny_weights

PLACE = {"bad/0.png": (8, 16), "bad/1.png": (40, 60), "bad/2.png": (0, 0)}  # top and left of a defect of 12 pixels


def draw_texture(generator: np.random.Generator, height: int = 64, width: int = 96) -> np.ndarray:
    """Diagonal stripes with noise, from a place of their own on."""
    rows, columns = np.indices((height, width)) + generator.integers(0, 8, 2)[:, None, None]
    stripes = 120 + 50 * np.sin((rows + columns) * np.pi / 4)
    return (stripes[..., None] + generator.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``good/``, ``new/`` and ``masks/``; a broken image is among both, and one of another size."""
    folder, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for name in ("good", "new/good", "new/bad", "masks/bad"):
        (folder / name).mkdir(parents=True)
    for i in range(50):
        Image.fromarray(draw_texture(generator)).save(folder / f"good/{i:02}.png")
    for i in range(4):
        Image.fromarray(draw_texture(generator)).save(folder / f"new/good/{i}.png")
    for name, (top, left) in PLACE.items():
        pixels, mask = draw_texture(generator), np.zeros((64, 96), np.uint8)
        pixels[top : top + 12, left : left + 12] = (20, 20, 200)
        mask[top : top + 12, left : left + 12] = 255
        Image.fromarray(pixels).save(folder / "new" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    for name in ("good/30.png", "new/good/2.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:500])
    return folder


def fit(place: Path, out: Path, **options: Any) -> Path:
    settings = {"model": TINY, "weights": write_tiny_weights(place), "image_size": 64, "device": "cpu", "false_alarms": 0.1}
    fitted = fit_detector(place / "good", out, **settings | options)
    assert (fitted.failures, len(densefeat.open_store(fitted.store))) == (1, 49)
    assert fitted.seconds > 0
    return fitted.path


@pytest.fixture(scope="module", params=["patchcore", "padim"])
def scored(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scored]:
    out = tmp_path_factory.mktemp(request.param)
    path = fit(place, out / "detector", method=request.param)
    return path, score_images(path.parent, place / "new", out / "scores", masks=place / "masks", device="cpu")


def test_defects_are_found_at_their_place(scored: tuple[Path, Scored]) -> None:
    _, found = scored
    assert (found.rows, found.failures) == (6, 1)
    with open(found.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*PLACE, "good/0.png", "good/1.png", "good/3.png"]
    assert [row["verdict"] for row in rows][:3] == ["anomalous"] * 3
    assert all(float(row["p_value"]) == pytest.approx(1 / 11, rel=1e-4) for row in rows[:3])  # 10 held-out images
    assert found.metrics["image_auroc"] == 1
    assert found.metrics["pixel_auroc"] > 0.9
    store = densefeat.open_store(found.store)
    np.testing.assert_allclose([float(row["score"]) for row in rows], store["score"][:, 0], rtol=1e-5)
    for row, (top, left) in enumerate(PLACE.values()):
        shape = store.shapes["map"][1:]
        peak = np.unravel_index(store["map"][row].argmax(), shape)
        y, x = (peak[0] + 0.5) * 64 / shape[0], (peak[1] + 0.5) * 96 / shape[1]
        assert top - 5 <= y <= top + 17
        assert left - 5 <= x <= left + 17
    results = json.loads((found.table.parent / "results.json").read_text())
    assert results["pro"] == found.metrics["pro"] > 0.7
    heat = np.asarray(Image.open(found.table.parent / "heat/bad/1.png")).astype(int)
    assert heat.shape == (64, 96, 3)
    assert heat[40:52, 60:72, 0].mean() > heat[:20, :40, 0].mean() + 50
    assert "bad/1.png" in found.page.read_text()


def test_scores_are_those_of_the_held_out_images(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    """A held-out image that is scored again has the score that it set the threshold with, and so its rank."""
    path, _ = scored
    again = score_images(path, place / "good", tmp_path / "again", device="cpu")
    scores = densefeat.open_store(again.store)["score"][:, 0]
    held_out = load_detector(path).alarms.held_out
    assert np.abs(scores[:, None] - held_out).min(0).max() < 1e-4 * held_out.max()


def test_the_same_call_makes_the_same_files(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    path, found = scored
    before = path.read_bytes()
    assert fit(place, path.parent, method=load_detector(path).method).read_bytes() == before
    tables = found.table.read_bytes(), found.page.read_bytes()
    again = score_images(path, place / "new", found.table.parent, masks=place / "masks", device="cpu")
    assert (again.table.read_bytes(), again.page.read_bytes()) == tables


def test_a_fit_goes_on_with_its_features(place: Path, tmp_path: Path) -> None:
    """Bit for bit as without an interruption; another network is refused."""
    whole = fit(place, tmp_path / "whole", image_size=32)
    (tmp_path / "whole/detector.safetensors").rename(tmp_path / "first")
    for part in (tmp_path / "whole/features/data").iterdir():
        part.unlink()
    assert fit(place, tmp_path / "whole", image_size=32).read_bytes() == (tmp_path / "first").read_bytes()
    assert load_detector(whole).method == "patchcore"
    with pytest.raises(UsageError, match="weights_sha256|shapes|model"):
        fit(place, tmp_path / "whole", model=BUNDLED, weights=None, image_size=32)
    fit(place, tmp_path / "whole", image_size=40, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method 'magic': choose one of patchcore, padim"),
        ({"false_alarms": 0.01}, "too few good images .50. for a false-alarm rate of 1 %: that takes 99 held-out images"),
        ({"false_alarms": 0.0}, "a false-alarm rate of 0 %"),
    ],
)
def test_what_cannot_be_fitted(place: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(place, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_refused(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    path, _ = scored
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files than a detector"):
        fit(place, tmp_path / "mine")
    with pytest.raises(UsageError, match="holds other files than scores"):
        score_images(path, place / "new", tmp_path / "mine", device="cpu")
    with pytest.raises(UsageError, match="no such folder"):
        score_images(path, place / "new", tmp_path / "out", masks=tmp_path / "no", device="cpu")
    with pytest.raises(WeightsError, match="no such file"):
        score_images(tmp_path / "no", place / "new", tmp_path / "out", device="cpu")


def test_a_detector_of_other_settings_stays(scored: tuple[Path, Scored], place: Path) -> None:
    path, _ = scored
    method = load_detector(path).method
    other = "padim" if method == "patchcore" else "patchcore"
    before = path.read_bytes()
    for options in ({"method": other}, {"method": method, "false_alarms": 0.2}):
        with pytest.raises(UsageError, match=f"has a detector by {method} for 10 % of false alarms: name another folder"):
            fit(place, path.parent, **options)
    assert path.read_bytes() == before


def test_images_with_defects_alone(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    path, _ = scored
    found = score_images(path, place / "new/bad", tmp_path / "out", masks=place / "masks/bad", device="cpu")
    assert found.metrics.keys() == {"pixel_auroc", "pro"}
    assert found.rows == 3


def test_masks_that_do_not_fit_are_refused_before_the_work(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image has a mask of its name"):
        score_images(scored[0], place / "new/good", tmp_path / "out", masks=place / "masks", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_list_with_its_images_elsewhere(scored: tuple[Path, Scored], place: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nbad/1.png\ngood/0.png\n")
    found = score_images(scored[0], tmp_path / "list.csv", tmp_path / "out", base=place / "new", device="cpu")
    assert (found.rows, found.not_drawn) == (2, {})
    assert (tmp_path / "out/heat/bad/1.png").exists()
    assert found.page.read_text().count("data:image/jpeg") == 2
