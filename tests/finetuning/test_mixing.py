"""Mixed images, and the weights of rare classes."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from densefeat.finetuning.mixing import Mixing, class_weights
from support.runs import tiny_finetuning

Y = torch.tensor([0, 3, -1, 2, 2, 1])
TAGS = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]])


def test_rare_classes_weigh_more() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    assert class_weights("single", labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    tags = np.array([[1, 0]] * 8 + [[1, 1]] * 2, np.int8)
    assert class_weights("multi", tags, 2).tolist() == pytest.approx([0.01, 4.0])  # never 0


@pytest.mark.parametrize("task", ["single", "multi"])
def test_mixing_depends_on_step_and_micro_batch_alone(tmp_path: Path, task: Literal["single", "multi"]) -> None:
    mixing = Mixing.from_recipe(tiny_finetuning(tmp_path, mixup=0.4, cutmix=1.0), task, 4)
    x, y = torch.randn(6, 3, 8, 8), Y if task == "single" else TAGS
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, other = mixing((x, y), 5, 1), mixing((x, y), 6, 1)
    assert (np.random.get_state()[1] == before).all()
    again = mixing((x, y), 5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], x)  # and the input is unchanged
    if task == "multi":
        spoiled = (first[1] < 0).all(1)
        assert spoiled.tolist() == [False, False, True, True, False, False]  # the unread image and its pair
    else:
        sums = first[1].sum(1)
        assert sums[[0, 1, 4, 5]].tolist() == pytest.approx([1.0] * 4)
        assert float(sums[2] + sums[3]) == pytest.approx(1.0)  # the unread image has no share
