"""``densefeat predict`` with a probe: what it promises, and what it cannot."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import run_command
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/`` of two classes and ``probe/`` of them; half of them are for validation."""
    folder, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    lines = ["path,label,part"]
    for row in range(120):
        kind = row % 2
        pixels = generator.normal(100 + 60 * kind, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"images/{row:03}.png")
        lines.append(f"images/{row:03}.png,kind {kind},{('train', 'val', 'val', 'test')[row // 2 % 4]}")
    (folder / "parts.csv").write_text("\n".join(lines))
    options = ("--model", TINY, "--weights", write_tiny_weights(folder), "--device", "cpu", "--workers", 1)
    labels = ("--labels", "parts.csv", "--split-column", "part", "--protocol", "ridge")
    output = run_command("probe", "--images", "images", "--out", "probe", *options, *labels, cwd=folder, check=True).stdout
    assert "probabilities: calibration error 0." in output
    return folder


def predict(place: Path, out: Path, *arguments: object) -> tuple[int, str, str]:
    weights = ("--weights", "tiny.safetensors", "--device", "cpu")
    return run_command("predict", "--model", "probe", "--images", "images", "--out", out, *weights, *arguments, cwd=place)


def test_answers_and_sets(place: Path, tmp_path: Path) -> None:
    done = predict(place, tmp_path / "o", "--risk", 0.1, "--set", 0.95)
    assert done[0] == 0, done[2]
    with open(tmp_path / "o/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    given = sum(row["answered"] == "yes" for row in rows)
    promised = "with a confidence of 90 %, at most 10 % of the answers are wrong, if these images are drawn as the probe's were"
    assert f"answered {given} of 120 ({100 * given / 120:.1f} %): {promised}\n" in done[1]
    assert list(rows[0]) == ["path", "predicted", "probability", "ood", "answered", "set"]
    assert all(row["predicted"] in row["set"].split("|") for row in rows)
    assert all(0 < float(row["ood"]) <= 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--risk", 0.01],
            "60 validation rows cannot promise that at most 1 % of the answers are wrong: that takes 299 at least",
        ),
        (["--set", 0.99], "60 validation rows cannot promise a coverage of 99 %: that takes 99 at least"),
        (["--set", 95], "a level of 95: give the share of sets that should hold the truth, such as 0.95"),
        (["--risk", 0], "a risk of 0: give the share of answers that may be wrong, above 0 and below 1"),
    ],
)
def test_what_cannot_be_promised(place: Path, tmp_path: Path, arguments: list, message: str) -> None:
    code, _, errors = predict(place, tmp_path / "o", *arguments)
    assert (code, message in errors) == (2, True), errors
    assert not (tmp_path / "o").exists()
