"""Backends prove themselves: what is wrong, broken or slow is refused, and says why."""

import logging
import time
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from densefeat import FeatureExtractor
from densefeat.errors import BackendError
from densefeat.features.proof import compare_features, try_backend
from support.engines import dense, make_images

CPU = torch.device("cpu")
Features = dict[str, torch.Tensor]


def compute() -> Features:
    generator = torch.Generator().manual_seed(0)
    return {"block1": torch.randn(4, 6, generator=generator), "block2": torch.randn(4, 8, 2, 2, generator=generator)}


def pause(seconds: float, run: Callable[[], Features] = compute) -> Callable[[], Features]:
    def slow() -> Features:
        time.sleep(seconds)
        return run()

    return slow


def change(block: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Features]:
    return lambda: (features := compute()) | {block: by(features[block])}


def fail() -> Features:
    raise ValueError("no such kernel\nand more")


def spoil(values: torch.Tensor) -> torch.Tensor:
    values[0, 0] = torch.nan
    return values


@pytest.mark.parametrize(
    ("run", "precision", "refused"),
    [
        (compute, "fp32", None),
        (change("block2", lambda x: x * (1 + 1e-6)), "fp32", None),
        (change("block2", lambda x: x * (1 + 1e-4)), "fp32", "its block2 differs from the plain network's by 1.0e-04"),
        (change("block1", lambda x: x.flip(1)), "fp32", "its block1 differs"),
        (change("block1", lambda x: x.flip(1)), "bf16", "its block1 differs"),
        (change("block1", lambda x: x * 1.01), "bf16", None),  # of one direction
        (change("block1", spoil), "fp32", "its block1 differs from the plain network's by nan"),
        (change("block1", spoil), "bf16", "its block1 differs from the plain network's by nan"),
        (fail, "fp32", "ValueError: no such kernel"),
        (lambda: {"block1": compute()["block1"]}, "fp32", "KeyError"),
        (pause(0.1), "fp32", "not faster by 5 %"),
    ],
)
def test_what_is_wrong_or_slow_is_refused(run: Callable[[], Features], precision: str, refused: str | None) -> None:
    trial = try_backend("triton", pause(0.02), lambda: run, precision, CPU)
    assert trial.backend == "triton"
    if refused is None:
        assert trial.refused is None
        assert trial.speed is not None
        assert trial.speed > 1.05
        assert trial.difference is not None
        assert "used, it differs from the plain network by" in trial.describe()
    else:
        assert trial.refused is not None
        assert trial.refused.startswith(refused)
        assert "and more" not in trial.describe()


def test_a_backend_that_cannot_be_built_is_refused() -> None:
    trial = try_backend("triton", compute, lambda: (_ for _ in ()).throw(RuntimeError("no GPU")), "fp32", CPU)
    assert trial.refused == "RuntimeError: no GPU"
    assert trial.to_json() == {"backend": "triton", "refused": "RuntimeError: no GPU", "difference": None, "speed": None}


def test_nan_has_to_be_where_the_plain_network_has_it() -> None:
    expected = compute()
    spoil(expected["block1"])
    same = {name: values.clone() for name, values in expected.items()}
    for precision in ("fp32", "bf16"):
        assert compare_features(same, expected, precision, CPU)[1] is None
        assert compare_features(compute(), expected, precision, CPU)[1] is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("found", "expected"), [(torch.inf, torch.nan), (torch.nan, torch.inf), (-torch.inf, torch.inf)])
def test_what_is_not_finite_has_to_be_the_same(found: float, expected: float, precision: str) -> None:
    one, other = compute(), compute()
    one["block1"][0, 0], other["block1"][0, 0] = found, expected
    assert compare_features(one, other, precision, CPU)[1] is not None
    assert compare_features(other, other, precision, CPU)[1] is None


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t").eval()


def test_a_network_of_timm_is_traced(resnet: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """The features are those of timm's own pass, at every size, pooled or not."""
    caplog.set_level(logging.INFO, "densefeat")
    extractor = FeatureExtractor(resnet, device="cpu", pool=("avg", "max"))
    images = make_images(8, 64, 64)
    (trial,) = extractor.prove(images)
    assert trial.backend == "openvino"
    assert trial.difference is not None
    assert trial.difference < 1e-5
    assert extractor.backend == ("openvino" if trial.refused is None else "reference")
    assert caplog.messages == [trial.describe()]
    asked, engine = FeatureExtractor(resnet, device="cpu", pool=("avg", "max"), backend="openvino"), None
    for batch in (images[:3], make_images(9, 64, 64), make_images(2, 96, 64)):
        with torch.no_grad():
            maps = resnet.forward_intermediates(batch, intermediates_only=True)
        found = asked(batch)
        assert asked.network._cached is not None
        assert engine in (None, asked.network._cached)  # it is built once
        engine = asked.network._cached
        for name, values in zip((tap.name for tap in asked.taps), maps, strict=True):
            scale = float(values.abs().max())
            torch.testing.assert_close(found[f"{name}_avg"], values.mean((2, 3)), atol=1e-5 * scale, rtol=0)
            torch.testing.assert_close(found[f"{name}_max"], values.amax((2, 3)), atol=1e-5 * scale, rtol=0)


def test_networks_of_ours_have_nothing_to_prove() -> None:
    assert FeatureExtractor(dense(), device="cpu").prove(make_images(2)) == []
    assert FeatureExtractor(dense(), device="cpu", backend="reference").prove(make_images(2)) == []


class Pretending(nn.Module):
    """A layer that computes something else where it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.001 if torch.compiler.is_exporting() else x


class Branching(nn.Module):
    """A layer that depends on the values of its input, which no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.sum() > 0) else x


@pytest.mark.parametrize(
    ("layer", "reason"), [(Pretending, "differs from the plain network's by"), (Branching, "cannot be traced")]
)
def test_a_network_that_a_trace_cannot_follow(resnet: nn.Module, layer: type[nn.Module], reason: str) -> None:
    """auto goes on with the plain network; who asked for the backend is told."""
    resnet.act1 = layer()
    extractor, images = FeatureExtractor(resnet, device="cpu"), make_images(2, 64, 64)
    (trial,) = extractor.prove(images)
    assert trial.refused is not None
    assert reason in trial.refused
    assert extractor.backend == "reference"
    assert len(extractor(images)) == 5
    with pytest.raises(BackendError, match=reason):
        FeatureExtractor(resnet, device="cpu", backend="openvino")(images)


def test_weights_that_are_not_finite_are_not_traced(resnet: nn.Module) -> None:
    with torch.no_grad():
        resnet.layer1[0].conv1.weight[0, 0, 0, 0] = torch.nan
    (trial,) = FeatureExtractor(resnet, device="cpu").prove(make_images(2, 64, 64))
    assert trial.refused == "BackendError: backend 'openvino': the network has weights that are not finite"


def test_changed_weights_are_traced_again(resnet: nn.Module) -> None:
    extractor, images = FeatureExtractor(resnet, device="cpu", backend="openvino"), make_images(2, 64, 64)
    before = extractor(images)
    with torch.no_grad():
        resnet.conv1[0].weight.mul_(2)
    after = extractor(images)
    assert not torch.equal(after["layer1"], before["layer1"])
    plain = FeatureExtractor(resnet, device="cpu", backend="reference")(images)
    for name, values in plain.items():
        torch.testing.assert_close(after[name], values, atol=1e-5 * float(values.abs().max()), rtol=0)


def test_nothing_to_compare_is_no_proof() -> None:
    zeros = pause(0.02, lambda: {"block1": torch.zeros(4, 6)})
    trial = try_backend("triton", zeros, lambda: lambda: {"block1": torch.zeros(4, 6)}, "fp32", CPU)
    assert trial.refused == "the plain network gives nothing to compare: only zeros, NaN and infinities"


class Sized(nn.Module):
    """A layer that computes something else where it is traced for images of more than 64 pixels a side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.001 if torch.compiler.is_exporting() and x.shape[3] > 32 else x


def test_every_size_of_images_is_compared(resnet: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    resnet.act1 = Sized()
    asked, small, large = (
        FeatureExtractor(resnet, device="cpu", backend="openvino"),
        make_images(2, 64, 64),
        make_images(2, 96, 96),
    )
    asked(small)
    with pytest.raises(
        BackendError, match="backend 'openvino': its .* differs from the plain network's .*: choose backend 'reference'"
    ):
        asked(large)
    auto = FeatureExtractor(resnet, device="cpu")
    auto.network.backend = "openvino"  # as after a proof on small images
    auto(small)
    plain = FeatureExtractor(resnet, device="cpu", backend="reference")(large)
    for name, values in auto(large).items():
        assert torch.equal(values, plain[name])
    assert auto.backend == "reference"
    assert "backend: reference (openvino: its" in caplog.text
