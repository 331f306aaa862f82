"""The folder of a run: the curves, and files that are damaged when it resumes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import UsageError
from densefeat.training.recipe_files import load_recipe
from densefeat.training.run_folder import RunFolder, _draw_curves
from support.runs import FAST


def test_curves_are_drawn(tmp_path: Path) -> None:
    train = [{"event": "train", "epoch": e, "loss": 2.3 / (1 + e), "top1": 10 * e, "lr": 0.1} for e in range(9)]
    val = [{"event": "val", "epoch": e, "loss": 2.3 / (1 + e) + 0.1, "top1": 9 * e} for e in range(1, 9)]
    assert _draw_curves(train + val, tmp_path / "curves.png")
    assert _draw_curves([], tmp_path / "empty.png")
    full, empty = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("curves.png", "empty.png"))
    assert full.shape == empty.shape == (480, 1320, 3)
    coloured = (np.ptp(full, axis=2) > 60).sum()
    assert coloured > 500
    assert (np.ptp(empty, axis=2) > 60).sum() == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- a", b"", b"[" * 20_000, b"a: !!python/name:os.system"])
def test_a_damaged_recipe_in_the_folder_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe.yaml' is damaged \(.*\): name another --out") as caught:
        RunFolder(tmp_path).check(load_recipe(str(FAST)))
    assert "\n" not in str(caught.value)


def test_damaged_metrics_lose_their_line_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log("train", 3, epoch=0.5, loss=1.5)
    good = run.metrics()
    for line in (
        b'{"event": "val", "ste',
        b"\xff\xfe",
        b"[1]",
        b"7",
        b'{"event": "val"}',
        b'{"event": 1, "step": "3"}',
        b"[" * 20_000,
    ):
        (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + b'{"event": "train", "step": 3, "epoch": 0.5, "loss": 1.5}\n')
        assert run.metrics() == good


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 20_000, b'{"step": 3, "densefeat_sha256": "0"}'])
def test_damaged_results_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    assert RunFolder(tmp_path).results() is None
