"""Heads trained at once against torch's own layers, losses and optimizer, one head at a time."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.errors import UsageError
from densefeat.labels.targets import Task
from densefeat.sgd_probe.parallel_heads import RATES, ParallelHeads
from densefeat.training.world import World

SIZES = {"block1": 5, "block2": 7, "all": 12}
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
STEPS, BATCH, CLASSES = 30, 64, 4


def new_heads(task: Task, seed: int = 0) -> ParallelHeads:
    return ParallelHeads.start(SIZES, CLASSES, task, BATCH, seed, CPU, torch.float64)


def batches(task: Task, count: int = STEPS) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        first, second = (3 * torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for size in (5, 7))
        scores = first[:, :CLASSES] + second[:, :CLASSES]
        made.append(
            (
                {"block1": first, "block2": second, "all": torch.cat([first, second], 1)},
                scores > 0 if task == "multi" else scores.argmax(1),
            )
        )
    return made


@pytest.mark.parametrize("task", ["single", "multi"])
def test_each_head_learns_what_it_would_alone(task: Task) -> None:
    heads = new_heads(task)
    alone: dict[tuple[str, int], tuple[nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]] = {}
    for name, size in SIZES.items():
        for place, rate in enumerate(RATES):
            layer = nn.Linear(size, CLASSES, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(heads.weights[name][place, :, :-1])
                layer.bias.copy_(heads.weights[name][place, :, -1])
            optimizer = torch.optim.SGD(layer.parameters(), lr=rate * BATCH / 256, momentum=0.9, weight_decay=0)
            alone[name, place] = layer, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    started = {name: weight.clone() for name, weight in heads.weights.items()}
    for features, y in batches(task):
        heads.learn(features, y, BATCH, STEPS, ALONE)
        for (name, _), (layer, optimizer, scheduler) in alone.items():
            logits = layer(features[name])
            loss = (
                F.cross_entropy(logits, y)
                if task == "single"
                else F.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum") / BATCH
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    for (name, place), (layer, *_) in alone.items():
        own = heads.weights[name][place]
        assert (own[:, :-1] - layer.weight).abs().max() < 1e-10
        assert (own[:, -1] - layer.bias).abs().max() < 1e-10
        linear, x = heads.linear(name, place), batches(task, 1)[0][0][name]
        assert np.abs(linear.scores(x.numpy()) - layer(x).detach().numpy()).max() < 1e-4
    moved = [float((heads.weights[name] - started[name]).abs().amax((1, 2))[-1]) for name in SIZES]
    assert min(moved) > 0.05


def test_heads_start_as_the_protocol_says() -> None:
    heads = ParallelHeads.start({"a": 300, "b": 300}, 10, "single", 512, 0, CPU)
    for weight in heads.weights.values():
        assert weight.shape == (13, 10, 301)
        assert (weight[:, :, -1] == 0).all()
        assert weight[:, :, :-1].std().item() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(heads.weights["a"], heads.weights["b"])
    assert torch.equal(ParallelHeads.start({"a": 300}, 10, "single", 512, 0, CPU).weights["a"], heads.weights["a"])
    assert heads.rates.tolist() == pytest.approx([2 * rate for rate in RATES])
    assert RATES[0] == 1e-5
    assert RATES[-1] == 0.1
    assert all(math.isclose(high / low, 2, rel_tol=0.3) for low, high in pairwise(RATES))


def test_going_on_equals_straight_on() -> None:
    straight, first, second = new_heads("single"), new_heads("single"), new_heads("single", seed=5)
    made = batches("single")
    for features, y in made:
        straight.learn(features, y, BATCH, STEPS, ALONE)
    for features, y in made[:11]:
        first.learn(features, y, BATCH, STEPS, ALONE)
    second.load_state_dict(first.state_dict())
    for features, y in made[11:]:
        second.learn(features, y, BATCH, STEPS, ALONE)
    assert second.step == straight.step == STEPS
    assert all(torch.equal(second.weights[name], straight.weights[name]) for name in SIZES)


def test_images_left_out_of_a_batch_add_nothing() -> None:
    short, padded = new_heads("single"), new_heads("single")
    (features, y), *_ = batches("single", 1)
    short.learn({name: x[:40] for name, x in features.items()}, y[:40], BATCH, STEPS, ALONE)
    gradient = (
        padded.gradient(padded.weights["all"], torch.cat([features["all"], torch.ones(BATCH, 1)], 1)[:40], y[:40]) / BATCH
    )
    expected = padded.weights["all"] - gradient * padded.rates[:, None, None]
    assert torch.allclose(short.weights["all"], expected, atol=1e-14)
    short.learn({name: x[:0] for name, x in features.items()}, y[:0], BATCH, STEPS, ALONE)
    assert all(torch.isfinite(weight).all() for weight in short.weights.values())


def test_more_heads_than_memory() -> None:
    with pytest.raises(
        UsageError, match=r"13 heads of 100,000 classes for each block are 2,[0-9,]+ weights: probe fewer blocks"
    ):
        ParallelHeads.start({"a": 1024, "b": 1024}, 100_000, "single", 256, 0, CPU)
