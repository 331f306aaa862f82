"""``densefeat anomaly fit`` and ``score`` as a person meets them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import Finished, run_command
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 good images and a broken one, a detector of them, and new images with a mask."""
    folder, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for name in ("good", "new/good", "new/hole", "masks/hole"):
        (folder / name).mkdir(parents=True)
    for i in range(26):
        pixels = generator.normal(120, 20, (40, 40, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / (f"good/{i:02}.png" if i < 24 else f"new/good/{i}.png"))
    pixels[10:20, 10:20] = 0
    Image.fromarray(pixels).save(folder / "new/hole/0.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(folder / "masks/hole/0_mask.png")
    (folder / "good/broken.png").write_bytes(b"nothing")
    (folder / "new/hole/broken.png").write_bytes(b"nothing")
    options = ("--model", TINY, "--weights", write_tiny_weights(folder), "--device", "cpu", "--workers", 1)
    done = run_command(
        "anomaly", "fit", "--images", "good", "--out", "detector", "--false-alarms", "10%", *options, cwd=folder, check=True
    )
    assert "learnt from  15 images, 9 more held out" in done.stdout
    assert "patchcore, 16×16 positions" in done.stdout
    assert "10 % false alarms expected (95 % interval 0.28 to 34 %)" in done.stdout
    assert "not read: broken.png: " in done.stderr
    return folder


def score(place: Path, *arguments: object) -> Finished:
    return run_command("anomaly", "score", "--model", "detector", "--images", "new", "--device", "cpu", *arguments, cwd=place)


def test_scores(place: Path) -> None:
    code, output, errors = score(place, "--out", "scores", "--masks", "masks")
    assert code == 0, errors
    assert "AUROC of images  100.00 %" in output
    assert "wrote scores/anomalies.csv: 3 rows, " in output
    assert "1 failures (scores/scores/failures.parquet); worst first in scores/index.html" in output
    assert "not read: hole/broken.png: " in errors
    with open(place / "scores/anomalies.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["hole/0.png"]["verdict"] == "anomalous"
    assert sorted(path.relative_to(place / "scores/heat").as_posix() for path in (place / "scores/heat").rglob("*.png")) == [
        "good/24.png", "good/25.png", "hole/0.png",
    ]  # fmt: skip


def test_black_masks_of_defects_are_counted(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "new", tmp_path / "new")
    shutil.copytree(place / "masks", tmp_path / "masks")
    shutil.copy(tmp_path / "new/hole/0.png", tmp_path / "new/hole/1.png")
    (tmp_path / "masks/good").mkdir()
    for name in ("hole/1", "good/24"):  # of the second it is expected
        Image.new("L", (40, 40)).save(tmp_path / f"masks/{name}.png")
    code, output, errors = score(place, "--images", tmp_path / "new", "--out", tmp_path / "o", "--masks", tmp_path / "masks")
    assert code == 0, errors
    assert "\n1 masks of defects are all black: their images count as good\n" in errors
    assert "AUROC of images  " in output
    assert "all black" not in score(place, "--out", tmp_path / "p", "--masks", "masks").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fit", "--images", "good", "--out", "o", "--false-alarms", "some"],
            "'some' is no share: give one such as 1% or 0.01",
        ),
        (["fit", "--images", "good", "--out", "o", "--false-alarms", "90%"], "a false-alarm rate of 90 %"),
        (
            ["fit", "--images", "good", "--out", "o", "--false-alarms", "0.01"],
            "too few good images (25) for a false-alarm rate of 1 %",
        ),
        (["fit", "--images", "nowhere", "--out", "o"], "images 'nowhere': no such folder"),
        (["fit", "--images", "good", "--out", "new"], "holds other files than a detector"),
        (["score", "--model", "good", "--images", "new", "--out", "o"], "detector 'good/detector.safetensors': no such file"),
        (["score", "--model", "masks/hole/0_mask.png", "--images", "new", "--out", "o"], "damaged, or not a detector"),
        (["score", "--model", "detector", "--images", "new", "--out", "o", "--masks", "no"], "masks 'no': no such folder"),
        (["score", "--model", "detector", "--images", "new", "--out", "detector"], "holds other files than scores"),
    ],
)
def test_wrong_use(place: Path, arguments: list[str], message: str) -> None:
    done = run_command("anomaly", *arguments, "--device", "cpu", cwd=place)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "o").exists()


def test_none_can_be_read(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"nothing")
    code, _, errors = score(place, "--images", tmp_path / "bad", "--out", tmp_path / "o")
    assert code == 1
    assert "none of 1 images could be read" in errors
