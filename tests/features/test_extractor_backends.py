"""FeatureExtractor by its engines: the same features, from the weights as they are at each call."""

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


def check_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype)
        assert relative_difference(found[name], values) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("pool", ["avg", "max", EVERY_POOL])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_same_features(backend: str, make: type, pool: str | list[str], tap: str) -> None:
    model, x = make(), make_images(11, 45, 64)
    made, expected = (
        FeatureExtractor(model, "all", pool, tap, device="cpu", backend=name)(x) for name in (backend, "reference")
    )
    check_same(made, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pool_of_one_call(backend: str) -> None:
    model, x = dense(), make_images(3)
    made, expected = (
        FeatureExtractor(model, 2, device="cpu", backend=name)(x, pool=EVERY_POOL) for name in (backend, "reference")
    )
    check_same(made, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_in_training_mode_is_left_in_it(backend: str) -> None:
    model, x = dense().train(), make_images(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = FeatureExtractor(model, device="cpu", backend=backend)(x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_same(found, FeatureExtractor(model.eval(), device="cpu", backend="reference")(x))


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
    check_same(after, FeatureExtractor(model, device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_weights_of_a_model_by_name(backend: str) -> None:
    extractor, x = FeatureExtractor(BUNDLED, device="cpu", backend=backend), make_images(3, 32, 32)
    before = extractor(x)
    with torch.no_grad():
        extractor.model.features.conv0.weight.mul_(2)
    after = extractor(x)
    assert not torch.equal(after["block1"], before["block1"])
    check_same(after, FeatureExtractor(extractor.model, device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_is_made_once(backend: str) -> None:
    extractor = FeatureExtractor(dense(), device="cpu", backend=backend)
    extractor(make_images(2))
    engine = extractor._cached_engine.engine
    extractor(make_images(3, 40, 40))
    assert extractor._cached_engine.engine is engine


def test_hooks_that_come_later_are_not_ignored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "densefeat")
    model, x, called = dense(), make_images(1), []
    asked, auto = (FeatureExtractor(model, device="cpu", backend=backend) for backend in ("buffer", "auto"))
    before = [extractor(x) for extractor in (asked, auto)]
    model.features.norm5.register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(UsageError, match="backend 'buffer': hooks are registered on it"):
        asked(x)
    check_same(auto(x), before[1])
    assert called == [1]
    assert caplog.messages == ["backend: openvino", "backend: reference (hooks are registered on it)"]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_taps_that_are_set(backend: str) -> None:
    extractor, x = FeatureExtractor(dense(), device="cpu", backend=backend), make_images(2)
    every = extractor(x)
    extractor.taps = [extractor.taps[2], extractor.taps[0]]
    check_same(extractor(x), {name: every[name] for name in ("block1", "block3")})


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
    x = make_images(40, 32, 32)
    found, expected = (FeatureExtractor(trained, device="cpu", backend=name)(x) for name in (backend, "reference"))
    zeros = expected["block3"] == 0
    assert zeros.any()
    assert torch.equal(found["block3"] == 0, zeros)
    assert all((values >= 0).all() for values in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [-1.0, -2.0])
def test_networks_whose_relus_are_mostly_off(backend: str, bias: float) -> None:
    """Thresholds far from what passes them: as close to float64 as the plain network is, but for a factor."""
    model, x = dense(), make_images(8, 96, 96)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += bias
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    exact = FeatureExtractor(copy.deepcopy(model).double(), device="cpu", backend="reference")(x)
    plain, found = (FeatureExtractor(model, device="cpu", backend=name)(x) for name in ("reference", backend))
    for name, values in exact.items():
        assert relative_difference(found[name], values) <= 3 * relative_difference(plain[name], values) + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_can_be_learnt_from(backend: str) -> None:
    """Also those made in inference mode, and in the caller's autocast."""
    x = make_images(2)
    extractor = FeatureExtractor(dense(), 3, device="cpu", backend=backend)
    extractor.model.requires_grad_(True)
    width = extractor(x)["block3"].shape[1]
    head = nn.Linear(width, 2)
    with torch.inference_mode():
        extractor(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = extractor(x)["block3"]
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    head(found).sum().backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda extractor: pickle.loads(pickle.dumps(extractor))], ids=["deepcopy", "pickle"]
)
def test_copies(backend: str, copied: object) -> None:
    extractor, x = FeatureExtractor(BUNDLED, device="cpu", backend=backend), make_images(2, 32, 32)
    features = extractor(x)
    check_same(copied(extractor)(x), features)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("backend", "pickled"), [("auto", False), ("auto", True), ("openvino", False), ("openvino", True)])
def test_processes_forked_from_one_that_has_used_openvino(backend: str, pickled: bool) -> None:
    """OpenVINO's threads stay behind, and it would wait for them for ever: another engine, or an error where it was asked for."""
    script = f"""
import os, pickle, signal
import torch
from densefeat import DensefeatError, FeatureExtractor

extractor = FeatureExtractor({BUNDLED!r}, device="cpu", backend={backend!r})
x = torch.rand(2, 3, 32, 32)
expected = extractor(x)["block3"]
assert extractor.backend == "openvino"
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        copy = pickle.loads(pickle.dumps(extractor)) if {pickled} else extractor
        os._exit(0 if torch.allclose(copy(x)["block3"], expected, rtol=1e-4, atol=1e-5) and copy.backend == "buffer" else 1)
    except DensefeatError as error:
        os._exit(2 if "spawn" in str(error) else 3)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if backend == "auto" else 2), ended.stderr
