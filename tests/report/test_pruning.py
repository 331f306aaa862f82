"""Connections removed: against networks run with hooks, weights put back, work that goes on, and orders that tell apart."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.stats import binomtest
from torch import nn

from densefeat.errors import UsageError
from densefeat.report.connections import find_readers
from densefeat.report.judging import Journal, judge, zero_weights
from densefeat.report.pruning import _SHARES, BROKEN, LOST, RANDOM, WEIGHT, BlockTail, count_work, prune, write_pruning_csv
from densefeat.report.sample import Sample
from support.small_nets import deluge, dense

MODELS = {"dense": dense, "plain": lambda: dense(bottleneck=False, compression=1.0), "deluge": deluge}


def sample(count: int = 42) -> Sample:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return Sample(images, torch.randint(0, 5, (count,), generator=generator), 100)


def fresh() -> Journal:
    return Journal(None, {})


def logits_hooked(model: nn.Module, block: int, place: int, source: int, images: torch.Tensor) -> torch.Tensor:
    """Compute logits with a hook that removes the source's channels from what the convolution reads, after norm and ReLU."""
    layers = list(model.get_submodule(f"features.denseblock{block}").children())
    leaving = "features.transition1.conv" if block == 1 else "classifier"
    reader = layers[place].conv1 if place < len(layers) else model.get_submodule(leaving)
    first, growth = layers[0].conv1.in_channels, 4
    start = 0 if source == 0 else first + (source - 1) * growth
    stop = first if source == 0 else start + growth

    def take_away(_: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0].clone()
        x[:, start:stop] = 0
        return (x,)

    handle = reader.register_forward_pre_hook(take_away)
    with torch.inference_mode():
        found = model(images)
    handle.remove()
    return found


@pytest.mark.parametrize("name", ["dense", "plain"])
def test_every_connection_of_a_densenet_against_hooks(name: str) -> None:
    model, images = MODELS[name](), sample()
    for reader in find_readers(model):
        each = BlockTail(model, reader.block, images).judge_without(reader)
        for source, one in enumerate(each):
            logits = logits_hooked(model, reader.block, reader.place, source, images.images)
            np.testing.assert_array_equal(one.right, (logits.argmax(1) == images.labels).numpy())
            assert one.loss == pytest.approx(float(nn.functional.cross_entropy(logits, images.labels)), rel=1e-5)


def test_every_connection_of_a_delugenet_against_the_whole_network() -> None:
    """The source's norm gives its bias alone."""
    model, images = deluge(), sample()
    parameters = dict(model.named_parameters())
    for reader in find_readers(model):
        for source, one in enumerate(BlockTail(model, reader.block, images).judge_without(reader)):
            owner = f"layers.{reader.place}." if not reader.leaves else ""
            weight = parameters[f"features.block{reader.block}.{owner}aggregate.norms.{source}.weight"]
            before = weight.detach().clone()
            with torch.no_grad():
                weight.zero_()
                logits = model(images.images)
                weight.copy_(before)
            assert one.loss == pytest.approx(float(nn.functional.cross_entropy(logits, images.labels)), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_list(name: str) -> None:
    model, images = MODELS[name](), sample()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps: list[int] = []
    pruning = prune(model, images, fresh(), steps.append)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sum(steps) == count_work(model)
    assert (pruning.chosen_on, pruning.drawn_on) == (21, 21)
    assert pruning.whole == (
        judge(model, images.part(slice(0, None, 2))).top1,
        judge(model, images.part(slice(1, None, 2))).top1,
    )
    assert len(pruning.removed) == len({(each.block, each.target, each.source) for each in pruning.removed})
    assert len(pruning.removed) == sum(len(reader.weights) for reader in find_readers(model))
    broken = [each.broken for each in pruning.removed]
    assert broken == sorted(broken)
    assert len({each.loss_rise for each in pruning.removed}) > 10
    assert {len(curve) for curve in pruning.curves.values()} == {len(_SHARES)}
    assert list(pruning.curves) == [BROKEN, LOST, WEIGHT, RANDOM]


def test_figures_of_one_connection() -> None:
    model, images = dense(), sample()
    chosen = images.part(slice(0, None, 2))
    whole = judge(model, chosen)
    reader = find_readers(model)[-1]
    found = next(each for each in prune(model, images, fresh()).removed if (each.target, each.source) == ("classifier", 0))
    with zero_weights([reader.weights[0]]):
        one = judge(model, chosen)
    assert found.accuracy_lost == pytest.approx(whole.top1 - one.top1)
    assert found.loss_rise == pytest.approx(one.loss - whole.loss)
    assert (found.broken, found.mended) == ((whole.right & ~one.right).sum(), (~whole.right & one.right).sum())
    assert found.p_value == binomtest(found.broken, found.broken + found.mended).pvalue
    assert found.mean_abs_weight == pytest.approx(float(reader.weights[0].abs().mean()))


def test_curves_are_the_network_without_the_first_of_each_order() -> None:
    model, images = dense(), sample()
    pruning = prune(model, images, fresh())
    views = {
        (reader.block, reader.name, i): weight for reader in find_readers(model) for i, weight in enumerate(reader.weights)
    }
    by_weight = sorted(pruning.removed, key=lambda each: each.mean_abs_weight)
    for share, top1 in zip(_SHARES, pruning.curves[WEIGHT], strict=True):
        gone = by_weight[: round(share * len(by_weight))]
        with zero_weights([views[each.block, each.target, each.source] for each in gone]):
            assert judge(model, images.part(slice(1, None, 2))).top1 == top1


def test_weights_are_put_back_after_an_error() -> None:
    model = dense()
    weight = find_readers(model)[0].weights[0]
    before = weight.clone()
    with pytest.raises(KeyboardInterrupt), zero_weights([weight]):
        assert not weight.any()
        raise KeyboardInterrupt
    assert torch.equal(weight, before)


def test_the_same_call_resumes(tmp_path: Path) -> None:
    """Recorded judgements are not made again, and the result is the same."""
    model, images, about = dense(), sample(), {"model": "small"}
    wanted = prune(model, images, fresh())

    def stop_after(count: int):
        left = [count]

        def advance(_: int) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        return advance

    for calls in (2, 9):
        with pytest.raises(KeyboardInterrupt):
            prune(model, images, Journal(tmp_path / "done.jsonl", about), stop_after(calls))
    before = (tmp_path / "done.jsonl").read_text()
    assert prune(model, images, Journal(tmp_path / "done.jsonl", about)) == wanted
    after = (tmp_path / "done.jsonl").read_text()
    assert after.startswith(before)
    assert after.count("\n") == 2 + len(find_readers(model)) + 6 * len(_SHARES)
    stamp = (tmp_path / "done.jsonl").stat().st_mtime_ns
    assert prune(model, images, Journal(tmp_path / "done.jsonl", about)) == wanted
    assert (tmp_path / "done.jsonl").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            '{"model": "other", "weights": "x", "more": 1}\n',
            "belongs to other work .model, more differ.: remove it, or name another --out",
        ),
        ("not JSON", "exists and is not a journal to resume from"),
        ("", "exists and is not a journal to resume from"),
        ('{"model": "small", "weights": "x"}\n{"key": 1}\n', "exists and is not a journal to resume from"),
    ],
)
def test_other_work_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "done.jsonl").write_text(text)
    with pytest.raises(UsageError, match=match):
        Journal(tmp_path / "done.jsonl", {"model": "small", "weights": "x"})


def test_the_csv(tmp_path: Path) -> None:
    pruning = prune(dense(), sample(), fresh())
    write_pruning_csv(pruning, tmp_path / "prune.csv")
    with open(tmp_path / "prune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy_lost"]) for row in rows] == [each.accuracy_lost for each in pruning.removed]
    assert [int(row["broken"]) - int(row["mended"]) for row in rows] == pytest.approx(
        [each.accuracy_lost * 21 / 100 for each in pruning.removed]
    )


@pytest.mark.parametrize(
    ("model", "images", "match"),
    [
        (dense(num_classes=0), sample(), "DenseNet has no linear classifier whose"),
        (nn.Identity(), sample(), "Identity has no linear classifier whose"),
        (timm.create_model("resnet18", num_classes=5), sample(), "ResNet: its connections are not known"),
        (dense(), sample(1), "1 labelled images: at least 2 are needed"),
    ],
)
def test_what_cannot_be_pruned(model: nn.Module, images: Sample, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        prune(model, images, fresh())
