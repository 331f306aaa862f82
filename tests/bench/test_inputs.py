"""The same weights and images for all arms, and the features that they must return."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import densefeat
from densefeat.bench.inputs import (
    _exact_features,
    _make_batch,
    _pool_blocks,
    calibrated_network,
    default_size,
    load_network,
    network_code,
    write_inputs,
)
from densefeat.errors import UsageError
from support.helpers import BUNDLED, relative_difference


def test_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (calibrated_network(BUNDLED, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.features.conv0.weight, other.features.conv0.weight)


def test_statistics_keep_features_in_range() -> None:
    model = calibrated_network("densefeat_densenet121", 64)
    assert not model.training
    features = _pool_blocks(model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert all(0.01 < float(value.abs().mean()) < 10 for values in features.values() for value in values)


@pytest.mark.parametrize(
    ("name", "others"),
    [("densefeat_densenet121", "rrrn"), (BUNDLED, "rrn"), ("densefeat_delugenet146", "nnn")],  # raw or norm
)
def test_features_are_the_extractors(name: str, others: str) -> None:
    model = calibrated_network(name, 32)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    norm, raw = (list(densefeat.FeatureExtractor(model, tap=tap, backend="reference")(x).values()) for tap in ("norm", "raw"))
    expected = {"ours": norm, "others": [(raw if tap == "r" else norm)[i] for i, tap in enumerate(others)]}
    for taps, values in _pool_blocks(model, x).items():
        for value, right in zip(values, expected[taps], strict=True):
            assert relative_difference(value, right) < 1e-5


def test_timms_own_network_takes_the_weights(tmp_path: Path) -> None:
    assert (network_code("densefeat_densenet121"), network_code(BUNDLED)) == ("timm", "plain network")
    for name, module in (("densefeat_densenet121", "timm.models.densenet"), (BUNDLED, "densefeat.nets.dense_net")):
        model = calibrated_network(name, 32)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        other = load_network(name, str(tmp_path / "w.safetensors"))
        assert type(other).__module__ == module
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert relative_difference(other(x), model(x)) < 1e-5


def test_images_of_a_folder_repeat_where_it_has_fewer(photo_folder: Path) -> None:
    model = calibrated_network(BUNDLED, 32)
    x = _make_batch(photo_folder, model, 14, 40)
    assert x.shape == (14, 3, 40, 40)
    assert torch.equal(x[12:], x[:2])
    assert len({float(image.sum()) for image in x[:12]}) == 12


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image file there"):
        _make_batch(tmp_path, calibrated_network(BUNDLED, 32), 1, 32)


def test_networks_that_no_engine_is_for_are_refused() -> None:
    with pytest.raises(UsageError, match="model 'resnet18': engines are for densefeat_densenet121, "):
        calibrated_network("resnet18")


def test_default_sizes() -> None:
    assert (default_size("densefeat_densenet201"), default_size("densefeat_delugenet146")) == (224, 32)


@pytest.mark.parametrize(("batch", "rows"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (32, [0, 10, 21, 31])])
def test_the_first_and_last_image_are_checked(batch: int, rows: list[int], tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, "densefeat_densenet40_k12", batch, 32, None)
    tensors = torch.load(inputs.tensors)
    assert (len(tensors["x"]), tensors["rows"], len(tensors["ours"][0])) == (batch, rows, len(rows))


def test_images_with_features_that_are_not_finite_are_refused() -> None:
    x = torch.zeros(2, 3, 32, 32)
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(UsageError, match="features of these images are not finite"):
        _exact_features(calibrated_network(BUNDLED, 32), x)
