"""Two processes that fine-tune take the steps of one, for each way to start the head."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from densefeat.finetuning.setup import finetune
from support.runs import FINETUNE, LAUNCH, PROCESS_ENVIRONMENT, newest_state, tiny_finetuning, untimed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX processes")]
EXACT = dict(precision="float64", freeze_norm=True, log_steps=1, patience=None, warmup_epochs=0, optimizer="sgd", lr=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        dict(head_start="probe", mode="blocks:3"),
        dict(head_start="random", head_epochs=0.7, mixup=0.2),
        dict(head="cross-layer", head_start="random", head_width=8, mode="head", ema=0.9),
    ],
    ids=["probe", "head-first", "cross-layer"],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = tiny_finetuning(tmp_path, **EXACT | changes)
    overrides = [f"{key}={json.dumps(value)}" for key, value in vars(recipe).items()]
    arguments = [str(FINETUNE), *overrides, "--out", str(tmp_path / "two"), "--device", "cpu"]
    command = [*LAUNCH, "-m", "support.train_tiny", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=PROCESS_ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    finetune(recipe, tmp_path / "one", "cpu")
    one, two = newest_state(tmp_path / "one"), newest_state(tmp_path / "two")
    assert one["step"] == two["step"] == 6
    if "mixup" in changes:  # each process mixes its own half of the batch: other pairs
        assert one["model"].keys() == two["model"].keys()
        return
    for name, value in one["model"].items():
        assert (value - two["model"][name]).abs().max() < 1e-8, name
    for before, after in zip(untimed(tmp_path / "one"), untimed(tmp_path / "two"), strict=True):
        for name in ("event", "precision"):
            assert after.pop(name, None) == before.pop(name, None)
        assert after == pytest.approx(before, rel=1e-5)
