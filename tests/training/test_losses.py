"""Losses against sums written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densefeat.training.losses import Loss

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
    assert float(loss(LOGITS, dense.float())) == pytest.approx(total, rel=1e-6)  # as if mixed with itself
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
