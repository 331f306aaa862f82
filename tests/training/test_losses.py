"""The losses of fine-tuning against torch's and naive sums."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densefeat.finetuning.mixing import Mixing, class_weights
from densefeat.training.losses import Loss
from support.runs import tiny_finetuning

LOGITS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 3, -1, 2, 2, 1])
TAGS = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_one_class_an_image(smoothing: float, weights: list[float] | None) -> None:
    loss = Loss("single", 4, smoothing, None if weights is None else torch.tensor(weights))
    log, total = LOGITS.log_softmax(1), 0.0
    for row, label in enumerate(Y.tolist()):
        if label >= 0:
            target = torch.full((4,), smoothing / 4, dtype=torch.float64)
            target[label] += 1 - smoothing
            total -= float((target * log[row] * torch.tensor(weights or [1.0] * 4)).sum())
    assert float(loss(LOGITS, Y)) == pytest.approx(total, rel=1e-9)
    dense = F.one_hot(Y.clamp(min=0), 4) * (Y >= 0)[:, None]
    assert float(loss(LOGITS, dense.float())) == pytest.approx(total, rel=1e-6)  # as mixed with itself
    assert loss.count(Y) == 5
    assert loss.hits(LOGITS, Y) == int((LOGITS.argmax(1) == Y).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_several_labels_an_image(smoothing: float, weights: list[float] | None) -> None:
    loss = Loss("multi", 4, smoothing, None if weights is None else torch.tensor(weights))
    total = 0.0
    for row in (0, 1, 3, 4, 5):
        for column in range(4):
            target = float(TAGS[row, column]) * (1 - smoothing) + smoothing / 2
            chance = float(LOGITS[row, column].sigmoid())
            weight = 1.0 if weights is None else weights[column]
            total -= weight * target * np.log(chance) + (1 - target) * np.log(1 - chance)
    assert float(loss(LOGITS, TAGS)) == pytest.approx(total / 4, rel=1e-9)
    assert loss.count(TAGS) == 5
    right = sum(int((LOGITS[row, c] > 0) == (TAGS[row, c] > 0)) for row in (0, 1, 3, 4, 5) for c in range(4))
    assert float(loss.hits(LOGITS, TAGS)) == pytest.approx(right / 4)


def test_rare_classes_weigh_more() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    assert class_weights("single", labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    tags = np.array([[1, 0]] * 8 + [[1, 1]] * 2, np.int8)
    assert class_weights("multi", tags, 2).tolist() == pytest.approx([0.01, 4.0])  # never 0


@pytest.mark.parametrize("task", ["single", "multi"])
def test_mixing_is_drawn_by_step_and_part_alone(tmp_path, task) -> None:
    mixing = Mixing.from_recipe(tiny_finetuning(tmp_path, mixup=0.4, cutmix=1.0), task, 4)
    x, y = torch.randn(6, 3, 8, 8), Y if task == "single" else TAGS
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, other = mixing((x, y), 5, 1), mixing((x, y), 6, 1)
    assert (np.random.get_state()[1] == before).all()
    again = mixing((x, y), 5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], x)  # and what was given is as it was
    if task == "multi":
        spoiled = (first[1] < 0).all(1)
        assert spoiled.tolist() == [False, False, True, True, False, False]  # the unread image and its pair
    else:
        sums = first[1].sum(1)
        assert sums[[0, 1, 4, 5]].tolist() == pytest.approx([1.0] * 4)
        assert float(sums[2] + sums[3]) == pytest.approx(1.0)  # of the unread image nothing is left
