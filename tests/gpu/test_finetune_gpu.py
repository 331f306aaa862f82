"""Fine-tuning on a GPU: what is frozen stays, and a run in pieces is the same run."""

from pathlib import Path

import pytest
import timm
import torch

from densefeat.finetuning.setup import finetune
from support.helpers import BUNDLED
from support.runs import assert_same_training, newest_state, tiny_finetuning

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_frozen_backbone_stays_bit_for_bit(tmp_path: Path, precision: str) -> None:
    recipe = tiny_finetuning(tmp_path, mode="head", freeze_norm=False, precision=precision, mixup=0.2)
    finetune(recipe, tmp_path / "run", "cuda")
    after, before = newest_state(tmp_path / "run")["model"], timm.create_model(BUNDLED, pretrained=True).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name.startswith("features."))


def test_a_run_in_pieces_is_the_same_run(tmp_path: Path) -> None:
    recipe = tiny_finetuning(tmp_path, deterministic=True, patience=None, head_start="random", head_epochs=0.7)
    finetune(recipe, tmp_path / "straight", "cuda")
    for steps in (1, 3, 2):
        finetune(recipe, tmp_path / "pieces", "cuda", steps)
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")
