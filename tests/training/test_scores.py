"""Top-1, top-5 and loss against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, recall_score, top_k_accuracy_score
from torch import nn

from densefeat.training.device_data import MicroBatch
from densefeat.training.scores import Scores, score
from densefeat.training.world import World

WORLD = World(0, 1, torch.device("cpu"))


def make_batch(count: int, classes: int, dtype: torch.dtype = torch.float32) -> MicroBatch:
    """Return logits that are right more often than by chance, and labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, classes)
    return logits.to(dtype), y


def scored(x: torch.Tensor, y: torch.Tensor, size: int = 7) -> Scores:
    return score(nn.Identity(), zip(x.split(size), y.split(size), strict=True), x.shape[1], WORLD)


@pytest.mark.parametrize("classes", [6, 10, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_scikit_learn(classes: int, dtype: torch.dtype) -> None:
    x, y = make_batch(300, classes, dtype)
    found, labels = scored(x, y), np.arange(classes)
    assert found.images == 300
    for own, k in ((found.top1, 1), (found.top5, 5)):
        theirs = top_k_accuracy_score(y.numpy(), x.numpy(), k=k, labels=labels)
        assert own == pytest.approx(100 * theirs, abs=1e-9)
    assert 1 < found.top1 < found.top5 < 100
    theirs = log_loss(y.numpy(), x.double().softmax(1).numpy(), labels=labels)
    assert found.loss == pytest.approx(300 * theirs, rel=1e-5)
    assert found.to_json() == {
        "images": 300, "top1": round(found.top1, 4), "top5": round(found.top5, 4), "loss": pytest.approx(theirs, abs=1e-4),
        "balanced_accuracy": pytest.approx(100 * recall_score(y, x.argmax(1), labels=y.unique(), average="macro"), abs=1e-3),
    }  # fmt: skip


def test_each_class_by_itself() -> None:
    x, y = make_batch(300, 10)
    counts = scored(x, y).counts
    assert (counts.shape, counts.dtype) == ((3, 10), torch.float64)
    for label in range(10):
        own, targets = x[y == label].numpy(), y[y == label].numpy()
        assert counts[0, label] == len(own)
        for row, k in ((1, 1), (2, 5)):
            hits = top_k_accuracy_score(targets, own, k=k, labels=np.arange(10), normalize=False)
            assert counts[row, label] == hits


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_five_classes_or_fewer_are_all_among_the_first_five(classes: int) -> None:
    x, y = make_batch(50, classes)
    found = scored(x, y)
    assert found.top5 == 100
    assert found.counts[1].sum() == (x.argmax(1) == y).sum()


def test_images_without_a_label_do_not_count() -> None:
    x, y = make_batch(400, 10)
    without = y.clone()
    without[::3] = -1
    found, wanted = scored(x, without), scored(x[without >= 0], y[without >= 0])
    assert torch.equal(found.counts, wanted.counts)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.images == 266


def test_no_image_at_all() -> None:
    x, _ = make_batch(4, 10)
    nothing = {"images": 0, "top1": 0.0, "top5": 0.0, "balanced_accuracy": 0.0, "loss": 0.0}
    assert scored(x, torch.full((4,), -1)).to_json() == nothing
    assert score(nn.Identity(), [], 10, WORLD).to_json() == nothing


def test_the_size_of_batches_changes_nothing() -> None:
    x, y = make_batch(100, 10)
    whole = scored(x, y, 100)
    for size in (1, 9, 64):
        found = scored(x, y, size)
        assert torch.equal(found.counts, whole.counts)
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_model_is_in_eval_mode_and_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.9), nn.BatchNorm1d(10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = make_batch(40, 10)
    first, second = (score(model, [(x, y)], 10, WORLD) for _ in range(2))
    assert first.loss == second.loss
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    x, y = make_batch(40, 10)
    plain, half = (
        score(model, [(x, y)], 10, WORLD),
        score(model, [(x, y)] * 2, 10, WORLD, torch.autocast("cpu", torch.bfloat16)),
    )
    assert half.images == 80
    assert half.loss != 2 * plain.loss
    assert half.loss == pytest.approx(2 * plain.loss, rel=0.02)


def test_scores_of_one_answer_for_all_images() -> None:
    counts = torch.tensor([[98.0, 2, 0], [98, 0, 0], [100, 0, 0]], dtype=torch.float64)
    remark = Scores(counts, 1.0).remark
    assert remark is not None
    assert remark.startswith(
        "no better than always answering the most frequent class, which is right for 98.00 %: top-1 98.00 %"
    )
    counts[1, 1] = 1
    assert Scores(counts, 1.0).remark is None
    assert Scores(torch.zeros(3, 3, dtype=torch.float64), 0.0).remark is None
