"""Networks of other programs with weights of their own: ours compute the same from their files."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch

from densefeat import WeightsError, load_weights
from support.cifar_nets import CifarNet
from support.helpers import randomize_statistics

STRUCTURE = dict(block_config=(2, 3, 1, 2))  # the layers of a DenseNet-121, and few of them
OLD_FORMAT = dict(_use_new_zipfile_serialization=False)


def load_small(path: Path, name: str = "densefeat_densenet121", **shape: Any) -> torch.nn.Module:
    model = timm.create_model(name, **shape).eval()
    load_weights(model, path, whole=True)
    return model


def test_monai(tmp_path: Path) -> None:
    networks = import_quietly("monai.networks.nets")
    torch.manual_seed(0)
    theirs = networks.DenseNet(spatial_dims=2, in_channels=4, out_channels=5, init_features=64, growth_rate=32, **STRUCTURE)
    randomize_statistics(theirs).eval()
    torch.save(theirs.state_dict(), tmp_path / "monai.pth")
    ours = load_small(tmp_path / "monai.pth", in_chans=4, num_classes=5, **STRUCTURE)
    x = torch.randn(2, 4, 75, 90)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def xray_net() -> Any:
    torch.manual_seed(0)
    return randomize_statistics(import_quietly("torchxrayvision").models.DenseNet(**STRUCTURE)).eval()


@pytest.mark.parametrize("options", [{}, OLD_FORMAT], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("whole", [True, False], ids=["module", "state dict"])
def test_torchxrayvision(whole: bool, options: dict[str, Any], xray_net: Any, tmp_path: Path) -> None:
    """Logits and features, without the thresholds by which torchxrayvision scales probabilities."""
    thresholds = torch.full((18,), 0.1)
    state = xray_net.state_dict() | {"op_threshs": thresholds}
    torch.save(xray_net if whole else state, tmp_path / "xrv.pt", **options)
    ours = load_small(tmp_path / "xrv.pt", in_chans=1, num_classes=18, **STRUCTURE)
    x = torch.rand(2, 1, 80, 64) * 2048 - 1024
    with torch.no_grad():
        torch.testing.assert_close(ours(x), xray_net(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.forward_head(ours.forward_features(x), pre_logits=True), xray_net.features2(x))
    config = ours.pretrained_cfg
    assert (config["mean"], config["std"], config["input_size"]) == ((0.5,), (1 / 2048,), (1, 224, 224))
    assert config["label_names"][:2] == ["Atelectasis", "Consolidation"]


def test_radimagenet(tmp_path: Path) -> None:
    """Its backbone is a Sequential of torchvision's children, ``backbone.0.conv0.weight``."""
    torch.manual_seed(0)
    theirs = randomize_statistics(timm.create_model("densenet121", **STRUCTURE)).eval()
    torch.save({f"backbone.0.{name}": value for name, value in theirs.features.state_dict().items()}, tmp_path / "rin.pt")
    ours = timm.create_model("densefeat_densenet121", **STRUCTURE).eval()
    load_weights(ours, tmp_path / "rin.pt")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["andreasveit", "bamos"])
@pytest.mark.parametrize("kind", ["state dict", "module", "DataParallel"])
def test_cifar_nets(style: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = randomize_statistics(CifarNet(style, layers=2)).eval()
    state = theirs.state_dict()
    if kind == "DataParallel":
        state = {f"module.{name}": value for name, value in state.items()}
    saved = theirs if kind == "module" else {"epoch": 3, "state_dict": state, "best_prec1": 95.0}
    torch.save(saved, tmp_path / "w.pth.tar", **OLD_FORMAT)
    ours = load_small(tmp_path / "w.pth.tar", "densefeat_densenet_bc100_k12", num_classes=10, block_config=(2, 2, 2))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Keras on torch, with its settings in a folder of the test."""
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path_factory.mktemp("keras"))}
    return import_quietly("keras")


def nest(keras: ModuleType, base: Any) -> Any:
    """Put a classifier on a network that stays a layer of its own."""
    image = keras.Input((75, 90, 3))
    return keras.Model(image, keras.layers.Dense(7)(keras.layers.Dropout(0.1)(base(image))))


def extend(keras: ModuleType, base: Any) -> Any:
    return keras.Model(base.input, keras.layers.Dense(7)(base.output))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy in Keras
@pytest.mark.parametrize("build", [nest, extend])
@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_keras(ending: str, build: Callable[..., Any], keras: ModuleType, tmp_path: Path) -> None:
    """To 1e-4 of the largest logit. Small variances, for which an epsilon of 1e-5 in place of 1.001e-5 matters."""
    make = import_quietly("keras.src.applications.densenet").DenseNet
    theirs = build(keras, make([2, 3, 1, 2], include_top=False, weights=None, input_shape=(75, 90, 3), pooling="avg"))
    random = np.random.default_rng(0)
    for variable in theirs.variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(random.choice([1e-6, 1.0], variable.shape))
        elif variable.path.endswith(("gamma", "beta", "moving_mean", "bias")):
            variable.assign(random.uniform(0.1, 0.5, variable.shape))
    path = tmp_path / f"w{ending}"
    (theirs.save_weights if ending == ".weights.h5" else theirs.save)(path)
    ours = load_small(path, num_classes=7, **STRUCTURE)
    x = random.normal(size=(2, 75, 90, 3)).astype(np.float32)
    wanted = theirs.predict(x, verbose=0)
    with torch.no_grad():
        found = ours(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def import_quietly(name: str) -> Any:
    """Import a module; what it says or sets of warnings is of no concern here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return __import__(name, fromlist=["x"])


def test_a_module_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"do not fit densefeat_densenet121.*: \d+ keys missing"):
        load_small(tmp_path / "w.pt", **STRUCTURE)
