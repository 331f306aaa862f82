"""Attentive heads trained at once against torch's own layers, losses and Adam, one head at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.errors import UsageError
from densefeat.labels.targets import Task
from densefeat.sgd_probe.attentive_heads import ATTENTIVE_RATES, QUERIES, AttentiveHeads, ChannelMoments
from densefeat.training.world import World

SIZES = {"block1": 5, "block2": 19}
CANDIDATES = {"block2 attentive": ("block2",), "all attentive": ("block1", "block2")}
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
STEPS, BATCH, CLASSES = 12, 16, 3


def make_moments() -> dict[str, ChannelMoments]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: ChannelMoments(torch.randn(size, generator=generator), 0.5 + torch.rand(size, generator=generator))
        for name, size in SIZES.items()
    }


def new_heads(task: Task = "single", seed: int = 0) -> AttentiveHeads:
    return AttentiveHeads.start(CANDIDATES, make_moments(), CLASSES, task, seed, CPU, torch.float64)


def batches(task: Task, count: int = STEPS) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        maps = {
            name: torch.randn(BATCH, size, side, side + 1, generator=generator, dtype=torch.float64)
            for side, (name, size) in enumerate(SIZES.items(), 2)
        }
        scores = maps["block1"][:, :CLASSES].amax((2, 3)) + maps["block2"][:, :CLASSES].mean((2, 3))
        made.append((maps, scores > scores.mean() if task == "multi" else scores.argmax(1)))
    return made


class Reference(nn.Module):
    """One head as modules of torch: standardised positions, attention of each query alone, values, a linear layer."""

    def __init__(self, heads: AttentiveHeads, name: str, rate: int) -> None:
        super().__init__()
        self.moments = heads.moments
        own = heads.parameters[name]
        self.columns = CANDIDATES[name]
        self.queries = nn.ParameterList(own[f"queries of {column}"][rate].clone() for column in self.columns)
        self.values = nn.ParameterList(own[f"values of {column}"][rate].clone() for column in self.columns)
        weight = own["weight"][rate]
        self.linear = nn.Linear(weight.shape[1] - 1, CLASSES, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(weight[:, :-1])
            self.linear.bias.copy_(weight[:, -1])

    def forward(self, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        pooled = []
        for column, queries, values in zip(self.columns, self.queries, self.values, strict=True):
            moments = self.moments[column]
            tokens = (maps[column].flatten(2).transpose(1, 2) - moments.mean) * moments.scale
            for query, value in zip(queries, values, strict=True):
                asked = query.expand(len(tokens), 1, -1)
                pooled.append(F.scaled_dot_product_attention(asked, tokens, tokens @ value.T)[:, 0])
        return self.linear(torch.cat(pooled, 1))


@pytest.mark.parametrize("task", ["single", "multi"])
def test_each_head_learns_what_it_would_alone(task: Task) -> None:
    heads = new_heads(task)
    assert heads.parameters["all attentive"]["values of block2"].shape == (7, QUERIES, 19 // QUERIES, 19)
    assert heads.parameters["all attentive"]["queries of block1"].shape == (7, 5, 5)  # as many queries as channels
    alone = {(name, place): Reference(heads, name, place) for name in CANDIDATES for place in (0, 3, 6)}
    steppers = {}
    for (name, place), module in alone.items():
        optimizer = torch.optim.Adam(module.parameters(), lr=ATTENTIVE_RATES[place])
        steppers[name, place] = optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for maps, y in batches(task):
        heads.learn(maps, y, BATCH, STEPS, ALONE)
        for key, module in alone.items():
            scores = module(maps)
            if task == "single":
                loss = F.cross_entropy(scores, y)
            else:
                loss = F.binary_cross_entropy_with_logits(scores, y.double(), reduction="sum") / BATCH
            optimizer, scheduler = steppers[key]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    maps, _ = batches(task, 1)[0]
    for (name, place), module in alone.items():
        expected = module(maps).detach()
        assert (heads.scores(name, maps)[:, place] - expected).abs().max() < 1e-8
        kept = heads.head(name, place)
        assert all(array.dtype == np.float32 for array in (*kept.queries, *kept.values, kept.weight, kept.bias))
        found = kept.scores([maps[column].numpy() for column in CANDIDATES[name]])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    start = new_heads(task).parameters["all attentive"]
    moved = heads.parameters["all attentive"]
    assert all((moved[key] - start[key]).abs().amax(tuple(range(1, start[key].ndim))).min() > 1e-4 for key in start)


def test_heads_start_as_the_source_says() -> None:
    moments = {"a": ChannelMoments(torch.zeros(400), torch.ones(400))}
    (own,) = AttentiveHeads.start({"a attentive": ("a",)}, moments, 10, "single", 0, CPU).parameters.values()
    assert own["queries of a"].std().item() == pytest.approx(0.02, rel=0.03)
    assert own["values of a"].abs().max().item() == pytest.approx(400**-0.5, rel=1e-3)
    assert own["weight"][:, :, :-1].std().item() == pytest.approx(0.01, rel=0.03)
    assert (own["weight"][:, :, -1] == 0).all()
    assert own["weight"].shape == (7, 10, 401)


def test_going_on_equals_straight_on() -> None:
    straight, first, second = new_heads(), new_heads(), new_heads(seed=5)
    made = batches("single")
    for maps, y in made:
        straight.learn(maps, y, BATCH, STEPS, ALONE)
    for maps, y in made[:5]:
        first.learn(maps, y, BATCH, STEPS, ALONE)
    second.load_state_dict(first.state_dict())
    for maps, y in made[5:]:
        second.learn(maps, y, BATCH, STEPS, ALONE)
    assert second.step == straight.step == STEPS
    for name, own in straight.parameters.items():
        assert all(torch.equal(second.parameters[name][key], value) for key, value in own.items())


def test_images_left_out_of_a_batch_add_nothing() -> None:
    heads, (maps, y) = new_heads(), batches("single", 1)[0]
    part = {name: x[:10] for name, x in maps.items()}
    whole = heads.gradients("all attentive", maps, y)
    parts = heads.gradients("all attentive", part, y[:10])
    rest = heads.gradients("all attentive", {name: x[10:] for name, x in maps.items()}, y[10:])
    assert all((parts[key] + rest[key] - value).abs().max() < 1e-12 for key, value in whole.items())
    before = {key: value.clone() for key, value in heads.parameters["all attentive"].items()}
    heads.learn({}, y[:0], BATCH, STEPS, ALONE)
    assert all(torch.equal(heads.parameters["all attentive"][key], value) for key, value in before.items())


def test_a_head_that_diverged_leaves_the_others_alone() -> None:
    heads, other = new_heads(), new_heads()
    heads.parameters["all attentive"]["queries of block1"][2] = torch.nan
    for maps, y in batches("single", 3):
        heads.learn(maps, y, BATCH, STEPS, ALONE)
        other.learn(maps, y, BATCH, STEPS, ALONE)
    scores, expected = (each.scores("all attentive", maps) for each in (heads, other))
    assert torch.isnan(scores[:, 2]).all()
    kept = [0, 1, 3, 4, 5, 6]
    assert (scores[:, kept] - expected[:, kept]).abs().max() < 1e-12


def test_more_heads_than_memory() -> None:
    moments = {"a": ChannelMoments(torch.zeros(20_000), torch.ones(20_000))}
    with pytest.raises(UsageError, match=r"7 heads of 10 classes for each block are 2,801,400,000 weights: probe fewer"):
        AttentiveHeads.start({"a attentive": ("a",)}, moments, 10, "single", 0, CPU)
