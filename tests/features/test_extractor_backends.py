"""FeatureExtractor by its engines: the same features, from the weights as they are at each call."""

import copy
import pickle

import pytest
import torch
from torch import nn

from densefeat import FeatureExtractor, UsageError
from engines import deluge, dense, images
from helpers import BUNDLED, relative_difference

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
    model, x = make(), images(11, 45, 64)
    made, expected = (
        FeatureExtractor(model, "all", pool, tap, device="cpu", backend=name)(x) for name in (backend, "reference")
    )
    check_same(made, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pool_of_one_call(backend: str) -> None:
    model, x = dense(), images(3)
    made, expected = (
        FeatureExtractor(model, 2, device="cpu", backend=name)(x, pool=EVERY_POOL) for name in (backend, "reference")
    )
    check_same(made, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_in_training_mode_is_left_in_it(backend: str) -> None:
    model, x = dense().train(), images(3)
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
], ids=["through-data", "statistics", "load_state_dict"])  # fmt: skip
def test_changed_weights_change_the_features(backend: str, change: object) -> None:
    model, x = dense(), images(3)
    extractor = FeatureExtractor(model, device="cpu", backend=backend)
    before = extractor(x)
    change(model)
    after = extractor(x)
    assert not torch.equal(after["block3"], before["block3"])
    check_same(after, FeatureExtractor(model, device="cpu", backend="reference")(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_is_made_once(backend: str) -> None:
    extractor = FeatureExtractor(dense(), device="cpu", backend=backend)
    extractor(images(2))
    engine = extractor.engine()
    extractor(images(3, 40, 40))
    assert extractor.engine() is engine


def test_hooks_that_come_later_are_not_ignored() -> None:
    model = dense()
    extractor = FeatureExtractor(model, device="cpu", backend="buffer")
    extractor(images(1))
    model.features.norm5.register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="backend 'buffer': hooks are registered on it, since the extractor was made"):
        extractor(images(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_can_be_learnt_from(backend: str) -> None:
    """Also those made in inference mode, and in the caller's autocast."""
    x = images(2)
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
    extractor, x = FeatureExtractor(BUNDLED, device="cpu", backend=backend), images(2, 32, 32)
    features = extractor(x)
    check_same(copied(extractor)(x), features)
