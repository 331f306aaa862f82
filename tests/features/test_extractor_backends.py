"""FeatureExtractor with engines: the same features, always from the current weights."""

import copy
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from densefeat import FeatureExtractor, UsageError
from support.engines import deluge, dense, make_images
from support.helpers import BUNDLED, relative_difference

BACKENDS = ["buffer", "openvino"]
EVERY_POOL = ["avg", "max", "gem:4", "none"]


def assert_same(features: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(features) == list(expected)
    for name, values in expected.items():
        assert (features[name].shape, features[name].dtype) == (values.shape, values.dtype)
        assert relative_difference(features[name], values) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("pool", ["avg", pytest.param("max", marks=pytest.mark.slow), EVERY_POOL])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_same_features(backend: str, make: type, pool: str | list[str], tap: str) -> None:
    model, x = make(), make_images(11, 45, 64)
    features, expected = (
        FeatureExtractor(model, "all", pool, tap, device="cpu", backend=name)(x) for name in (backend, "reference")
    )
    assert_same(features, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pool_of_one_call(backend: str) -> None:
    model, x = dense(), make_images(3)
    features, expected = (
        FeatureExtractor(model, 2, device="cpu", backend=name)(x, pool=EVERY_POOL) for name in (backend, "reference")
    )
    assert_same(features, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_keeps_its_training_mode(backend: str) -> None:
    model, x = dense().train(), make_images(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = FeatureExtractor(model, device="cpu", backend=backend)(x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_same(features, FeatureExtractor(model.eval(), device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [
    lambda model: model.features.conv0.weight.data.mul_(1.5),
    lambda model: model.features.norm5.running_mean.add_(0.5),
    lambda model: model.load_state_dict({name: value + value for name, value in model.state_dict().items()}),
    lambda model: setattr(model.features.denseblock1.denselayer1.norm1, "eps", 0.5),
], ids=["through-data", "statistics", "load_state_dict", "eps"])  # fmt: skip
def test_changed_weights_change_the_features(backend: str, change: object) -> None:
    model, x = dense(), make_images(3)
    extractor = FeatureExtractor(model, device="cpu", backend=backend)
    before = extractor(x)
    change(model)
    after = extractor(x)
    assert not torch.equal(after["block3"], before["block3"])
    assert_same(after, FeatureExtractor(model, device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", ["buffer", pytest.param("openvino", marks=pytest.mark.slow)])
def test_changed_weights_of_a_model_by_name(backend: str) -> None:
    extractor, x = FeatureExtractor(BUNDLED, device="cpu", backend=backend), make_images(3, 32, 32)
    before = extractor(x)
    with torch.no_grad():
        extractor.model.features.conv0.weight.mul_(2)
    after = extractor(x)
    assert not torch.equal(after["block1"], before["block1"])
    assert_same(after, FeatureExtractor(extractor.model, device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_is_built_once(backend: str) -> None:
    extractor = FeatureExtractor(dense(), device="cpu", backend=backend)
    extractor(make_images(2))
    engine = extractor.network._cached.engine
    extractor(make_images(3, 40, 40))
    assert extractor.network._cached.engine is engine


def test_hooks_that_are_added_later_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "densefeat")
    model, x, calls = dense(), make_images(1), []
    buffer, auto = (FeatureExtractor(model, device="cpu", backend=backend) for backend in ("buffer", "auto"))
    before = [extractor(x) for extractor in (buffer, auto)]
    model.features.norm5.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(UsageError, match="backend 'buffer': hooks are registered on it"):
        buffer(x)
    assert_same(auto(x), before[1])
    assert calls == [1]
    assert caplog.messages == ["backend: openvino", "backend: reference (hooks are registered on it)"]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_selected_taps_in_any_order(backend: str) -> None:
    extractor, x = FeatureExtractor(dense(), device="cpu", backend=backend), make_images(2)
    all_features = extractor(x)
    extractor.taps = [extractor.taps[2], extractor.taps[0]]
    assert_same(extractor(x), {name: all_features[name] for name in ("block1", "block3")})


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_no_images_have_no_features(backend: str) -> None:
    extractor = FeatureExtractor(dense(), device="cpu", backend=backend)
    assert {name: tuple(values.shape) for name, values in extractor.forward(make_images(2)[:0]).items()} == {
        "block1": (0, 60), "block2": (0, 54), "block3": (0, 63),
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"images of shape \(3, 64, 64\): pass \(N, C, H, W\)"):
        extractor.forward(make_images(1)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_are_zeros_and_nothing_is_negative(backend: str, trained: nn.Module) -> None:
    x = make_images(16, 32, 32)
    features, expected = (FeatureExtractor(trained, device="cpu", backend=name)(x) for name in (backend, "reference"))
    zeros = expected["block3"] == 0
    assert zeros.any()
    assert torch.equal(features["block3"] == 0, zeros)
    assert all((values >= 0).all() for values in features.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [-1.0, -2.0])
def test_networks_whose_relus_are_mostly_off(backend: str, bias: float) -> None:
    """Where few values pass their thresholds, the error against float64 stays within a factor of the plain network's."""
    model, x = dense(), make_images(8, 96, 96)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += bias
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    exact = FeatureExtractor(copy.deepcopy(model).double(), device="cpu", backend="reference")(x)
    plain, features = (FeatureExtractor(model, device="cpu", backend=name)(x) for name in ("reference", backend))
    for name, values in exact.items():
        assert relative_difference(features[name], values) <= 3 * relative_difference(plain[name], values) + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_can_train_a_head(backend: str) -> None:
    """Features stay usable for training after calls in inference mode and in the caller's autocast."""
    x = make_images(2)
    extractor = FeatureExtractor(dense(), 3, device="cpu", backend=backend)
    extractor.model.requires_grad_(True)
    width = extractor(x)["block3"].shape[1]
    head = nn.Linear(width, 2)
    with torch.inference_mode():
        extractor(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(x)["block3"]
    assert (features.dtype, features.requires_grad) == (torch.float32, False)
    head(features).sum().backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "copy_extractor", [copy.deepcopy, lambda extractor: pickle.loads(pickle.dumps(extractor))], ids=["deepcopy", "pickle"]
)
def test_copies(backend: str, copy_extractor: object) -> None:
    extractor, x = FeatureExtractor(dense(), device="cpu", backend=backend), make_images(2)
    features = extractor(x)
    assert_same(copy_extractor(extractor)(x), features)


FORKS = """
import os, pickle, signal
import torch
from densefeat import DensefeatError, FeatureExtractor

def run_child(extractor, pickled):
    signal.alarm(60)
    try:
        copy = pickle.loads(pickle.dumps(extractor)) if pickled else extractor
        same = torch.allclose(copy(x)["block3"], expected, rtol=1e-4, atol=1e-5)
        return "buffer" if same and copy.backend == "buffer" else "other features"
    except DensefeatError as error:
        return "refused" if "spawn" in str(error) else str(error)

x = torch.rand(2, 3, 32, 32)
for backend in ("auto", "openvino"):
    extractor = FeatureExtractor("densefeat_densenet_bc100_k12", device="cpu", backend=backend)
    expected = extractor(x)["block3"]
    assert extractor.backend == "openvino"
    for pickled in (False, True):
        child = os.fork()
        if child == 0:
            print(backend, pickled, run_child(extractor, pickled), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forks_of_a_process_that_has_used_openvino() -> None:
    """A fork does not copy OpenVINO's threads, which it would wait for: it uses another engine, or refuses an explicit request."""
    process = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=False)
    assert process.stdout.splitlines() == [
        "auto False buffer", "auto True buffer", "openvino False refused", "openvino True refused",
    ], process.stderr  # fmt: skip
