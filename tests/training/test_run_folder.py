"""The folder of a run: the curves."""

from pathlib import Path

import numpy as np
from PIL import Image

from densefeat.training.run_folder import _draw_curves


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
