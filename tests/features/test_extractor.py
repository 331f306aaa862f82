"""FeatureExtractor: the right tensors, from any kind of image, whatever else is in the batch."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from densefeat import DelugeNet, FeatureExtractor, UsageError
from densefeat.errors import DecodeError
from support.helpers import BUNDLED, randomize_statistics, relative_difference


@pytest.fixture(scope="module")
def batch(small_extractor: FeatureExtractor, photographs: list[Image.Image]) -> torch.Tensor:
    return small_extractor.prepare(photographs)


def test_norm_tap_is_what_the_next_stage_reads(trained: nn.Module, batch: torch.Tensor) -> None:
    features = FeatureExtractor(trained, pool="none")(batch)
    stages = trained.features
    x = batch
    with torch.no_grad():
        for i in (1, 2, 3):
            raw = getattr(stages, f"denseblock{i}")(x if i > 1 else stages.conv0(x))
            norm = getattr(stages, f"transition{i}").norm if i < 3 else stages.norm5
            expected = F.relu(F.batch_norm(raw, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
            torch.testing.assert_close(features[f"block{i}"], expected)
            if i < 3:
                x = F.avg_pool2d(getattr(stages, f"transition{i}").conv(expected), 2)


def test_raw_tap_is_the_concatenation(trained: nn.Module, batch: torch.Tensor) -> None:
    features = FeatureExtractor(trained, tap="raw", pool="none")(batch)
    with torch.no_grad():
        maps = trained.forward_intermediates(batch, intermediates_only=True)
    for i in (1, 2):
        torch.testing.assert_close(features[f"block{i}"], maps[i])
    assert features["block3"].min() < 0 <= FeatureExtractor(trained)(batch)["block3"].min()


def test_deluge_taps() -> None:
    torch.manual_seed(0)
    model = randomize_statistics(DelugeNet((8, 12), (3, 3), "cifar", num_classes=4)).eval()
    x = torch.randn(3, 3, 40, 36)
    norm, raw = (FeatureExtractor(model, tap=tap, pool="none")(x) for tap in ("norm", "raw"))
    with torch.no_grad():
        aggregated = model.features.block1(model.features.conv0(x))
        outputs = [model.features.block2.opener(aggregated)]
        for layer in model.features.block2.layers:
            outputs.append(layer(outputs))
        close = dict(rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm["block1"], aggregated, **close)
        torch.testing.assert_close(norm["block2"], model.features.block2.aggregate(outputs).clamp(min=0), **close)
        torch.testing.assert_close(raw["block2"], outputs[-1], **close)
    assert norm["block1"].min() < 0


def test_shapes_and_names_of_densenet121() -> None:
    extractor = FeatureExtractor(timm.create_model("densefeat_densenet121"))
    x = torch.randn(2, 3, 224, 224)
    shapes = {name: tuple(value.shape) for name, value in extractor(x).items()}
    assert shapes == {"block1": (2, 256), "block2": (2, 512), "block3": (2, 1024), "block4": (2, 1024)}
    assert extractor(x, pool="none")["block1"].shape == (2, 256, 56, 56)


def test_several_pools(small_extractor: FeatureExtractor, batch: torch.Tensor) -> None:
    maps = small_extractor(batch, pool="none")
    features = small_extractor(batch, pool=("avg", "max", "gem:2"))
    names = [f"block{i}_{pool}" for i in (1, 2, 3) for pool in ("avg", "max", "gem")]
    assert list(features) == names
    torch.testing.assert_close(features["block2_avg"], maps["block2"].mean((2, 3)))
    torch.testing.assert_close(features["block3_max"], maps["block3"].amax((2, 3)))


def test_all_kinds_of_images_agree_with_timms_transform(
    small_extractor: FeatureExtractor, photographs: list[Image.Image], tmp_path: Path
) -> None:
    for i, photograph in enumerate(photographs):
        photograph.save(tmp_path / f"{i}.png")
    transform = create_transform(**resolve_model_data_config(small_extractor.model))
    expected = small_extractor(torch.stack([transform(photograph) for photograph in photographs]))
    paths = [tmp_path / f"{i}.png" for i in range(len(photographs))]
    for images in (photographs, paths, [paths[0], str(paths[1]), *photographs[2:]]):
        features = small_extractor(images)
        for name in expected:
            assert torch.equal(features[name], expected[name])
    tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in photographs]
    features = small_extractor([*photographs[:2], *tensors[2:]])
    for name in expected:
        assert F.cosine_similarity(features[name], expected[name]).min() > 0.999
    one = small_extractor(photographs[0])
    assert one["block1"].shape == (1, 216)


def test_jpegs_with_pillow_equal_timms_transform_and_with_torchvision_nearly(trained: nn.Module, photo_folder: Path) -> None:
    paths = sorted(photo_folder.rglob("*.jpg"))
    transform = create_transform(**resolve_model_data_config(trained))
    expected = FeatureExtractor(trained)(torch.stack([transform(Image.open(path)) for path in paths]))
    with_pillow, with_torchvision = FeatureExtractor(trained, decoder="pillow"), FeatureExtractor(trained)
    assert (with_pillow.decoder, with_torchvision.decoder) == ("pillow", "torchvision")
    exact, near = with_pillow(paths), with_torchvision(paths)
    assert all(torch.equal(exact[name], expected[name]) for name in expected)
    assert not all(torch.equal(near[name], expected[name]) for name in expected)
    assert all(F.cosine_similarity(near[name], expected[name]).min() > 0.999 for name in expected)


def test_alone_in_a_batch_or_shuffled(small_extractor: FeatureExtractor, photographs: list[Image.Image]) -> None:
    together = small_extractor(photographs * 4)  # more than one internal batch
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = small_extractor([photographs[i] for i in order])
    for i, photograph in enumerate(photographs):
        alone = small_extractor(photograph)
        for name in alone:
            assert relative_difference(together[name][i], alone[name][0]) < 1e-5
            assert relative_difference(shuffled[name][order.index(i)], alone[name][0]) < 1e-5


def test_a_module_keeps_mode_statistics_and_gradients(batch: torch.Tensor) -> None:
    model = timm.create_model(BUNDLED, pretrained=True).train()
    model.features.denseblock2.eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluated = FeatureExtractor(model)(batch)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not any(value.requires_grad or value.is_inference() for value in evaluated.values())
    expected = FeatureExtractor(model.eval())(batch)
    assert all(torch.equal(evaluated[name], expected[name]) for name in expected)
    probe = nn.Linear(342, 2)
    probe(evaluated["block3"]).sum().backward()  # autograd refuses inference tensors


def test_the_mode_is_restored_after_an_error(trained: nn.Module) -> None:
    model = timm.create_model(BUNDLED).train()
    with pytest.raises(RuntimeError):
        FeatureExtractor(model)(torch.randn(1, 5, 32, 32))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_stops_after_the_last_requested_block(batch: torch.Tensor) -> None:
    model = timm.create_model(BUNDLED, pretrained=True).eval()
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, x, name=name: ran.append(name))
    features = FeatureExtractor(model, blocks=1)(batch[:4])
    assert list(features) == ["block1"]
    assert ran[-1] == "features.transition1.act"
    assert ran.count("features.denseblock1.denselayer1") == 1


@pytest.mark.parametrize(
    ("name", "taps"), [("resnet18", ["act1", "layer1", "layer4"]), ("vit_tiny_patch16_224", ["blocks.0", "blocks.11"])]
)
def test_other_timm_models(name: str, taps: list[str], photographs: list[Image.Image]) -> None:
    model = timm.create_model(name).eval()
    features = FeatureExtractor(model, pool="none")(photographs[:2])
    maps = model.forward_intermediates(FeatureExtractor(model).prepare(photographs[:2]), intermediates_only=True)
    assert set(taps) <= set(features)
    for value, expected in zip(features.values(), maps, strict=True):
        torch.testing.assert_close(value, expected.detach())


def test_a_module_that_defines_feature_info() -> None:
    class Own(nn.Module):
        feature_info = [dict(num_chs=4, reduction=1, module="first"), dict(num_chs=6, reduction=2, module="second")]

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 2, 2), nn.Linear(9, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.first(x)))  # fails where it is reached: the sizes do not fit

    x = torch.randn(2, 3, 8, 8)
    features = FeatureExtractor(Own())(x)
    assert {name: tuple(value.shape) for name, value in features.items()} == {"first": (2, 4), "second": (2, 6)}


@pytest.mark.usefixtures("with_bf16")
def test_bf16_is_close_and_returned_as_float32(trained: nn.Module, batch: torch.Tensor) -> None:
    # not OpenVINO's, which computes in float32 where the processor has no bf16
    full, half = (FeatureExtractor(trained, precision=name, backend="reference")(batch) for name in ("fp32", "bf16"))
    for name in full:
        assert half[name].dtype == torch.float32
        assert not torch.equal(half[name], full[name])
        assert F.cosine_similarity(half[name], full[name]).min() > 0.99
    assert FeatureExtractor(trained)(batch, output_dtype=torch.float16)["block1"].dtype == torch.float16


@pytest.mark.parametrize("backend", ["reference", "buffer", "openvino"])
def test_a_processor_without_bf16_computes_in_fp32(
    backend: str, trained: nn.Module, batch: torch.Tensor, without_bf16: None, caplog: pytest.LogCaptureFixture
) -> None:
    full, half = (FeatureExtractor(trained, precision=name, backend=backend, device="cpu") for name in ("fp32", "bf16"))
    assert (full.precision, half.precision) == ("fp32", "fp32")
    assert [record.getMessage()[:20] for record in caplog.records] == ["precision: fp32 (thi"]
    assert all(torch.equal(value, full(batch)[name]) for name, value in half(batch).items())


def test_a_model_in_half_precision(batch: torch.Tensor) -> None:
    model = timm.create_model(BUNDLED, pretrained=True).to(torch.bfloat16)
    features = FeatureExtractor(model)(batch)
    assert features["block3"].dtype == torch.float32
    assert features["block3"].isfinite().all()


def test_maps_are_safe_from_later_layers() -> None:
    class InPlace(nn.Module):
        feature_info = [dict(num_chs=3, reduction=1, module="first"), dict(num_chs=3, reduction=1, module="second")]

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    x = torch.randn(2, 3, 4, 4)
    features = FeatureExtractor(InPlace(), pool="none")(x.clone())
    assert torch.equal(features["first"], x)
    assert torch.equal(features["second"], x.clamp(min=0))


def test_image_size(trained: nn.Module, photographs: list[Image.Image]) -> None:
    maps = FeatureExtractor(trained, image_size=75, pool="none")(photographs[:2])
    assert [tuple(value.shape[2:]) for value in maps.values()] == [(75, 75), (37, 37), (18, 18)]
    assert FeatureExtractor(trained, image_size=75).feature_shapes() == {"block1": (216,), "block2": (300,), "block3": (342,)}


def test_sizes_that_a_model_cannot_take_are_refused() -> None:
    extractor = FeatureExtractor(timm.create_model("vit_tiny_patch16_224"), image_size=96)
    with pytest.raises(UsageError, match="VisionTransformer cannot take images of 96×96 pixels"):
        extractor.feature_shapes()


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([], "no images"),
        (42, "no images"),
        ([42], "a int is not an image"),
        (torch.zeros(3, 32, 32), "image 0: floating-point 32-bit values from 0 to 0, and the file does not say"),
        (torch.zeros(0, 3, 32, 32), r"float images of shape \(0, 3, 32, 32\)"),
        ([torch.zeros(32, 32, dtype=torch.uint8)], r"shape \(32, 32\) and torch.uint8"),
    ],
)
def test_inputs_that_are_no_images(images, match: str, small_extractor: FeatureExtractor) -> None:
    with pytest.raises(UsageError, match=match):
        small_extractor(images)


def test_unreadable_images_are_named_with_their_position(
    small_extractor: FeatureExtractor, photographs: list[Image.Image], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no")
    with pytest.raises(DecodeError, match=r"image 1 \(.*bad.jpg\): .*not an image"):
        small_extractor([photographs[0], tmp_path / "bad.jpg"])
    with pytest.raises(DecodeError, match=r"image 0 \(.*gone.jpg\): No such file"):
        small_extractor(tmp_path / "gone.jpg")
    with pytest.raises(DecodeError, match=r"image 40 "):
        small_extractor([*[photographs[0]] * 40, tmp_path / "bad.jpg"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(precision="fp8"), "precision 'fp8': choose one of fp32, bf16"),
        (dict(decoder="opencv"), "decoder 'opencv': choose one of torchvision, pillow"),
        (dict(device="warp"), "device 'warp'"),
        (dict(device="cuda:99"), "device 'cuda:99'"),
        (dict(model=nn.Identity(), weights="x.pt"), "weights are for a model given by name"),
        (dict(model="nothing_like_it"), "unknown model"),
    ],
)
def test_wrong_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        FeatureExtractor(**({"model": BUNDLED} | arguments))
