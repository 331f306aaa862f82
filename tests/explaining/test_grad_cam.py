"""Grad-CAM against gradients by finite differences, and against evidence, with which it agrees for a linear head."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import densefeat
from densefeat.errors import UsageError
from densefeat.explaining import explain
from densefeat.explaining.evidence import NetworkEvidence
from densefeat.explaining.grad_cam import GradCam
from densefeat.finetuning import finetune
from densefeat.heads import HeadedNet
from support.runs import tiny_finetuning, write_classes
from support.tiny_net import TINY, tiny_state


def make_tiny(num_classes: int = 10) -> torch.nn.Module:
    model = timm.create_model(TINY)
    model.load_state_dict(tiny_state())
    if num_classes != 10:
        model.reset_classifier(num_classes)
    return model.eval()


def draw_images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_of_a_linear_head_it_is_the_positive_evidence() -> None:
    model, x = make_tiny(), draw_images()
    with torch.no_grad():
        evidence = NetworkEvidence(model, [3, 1])(x)
        found = GradCam(model, [3, 1])(x)
    torch.testing.assert_close(found["scores"], evidence["scores"])
    torch.testing.assert_close(found["grad_cam"], evidence["evidence"].relu())


@pytest.mark.parametrize("kind", ["mlp", "cross-layer"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    torch.manual_seed(0)
    model = HeadedNet(make_tiny(0), kind, 8, 5).eval().double()
    x = draw_images(1).double()
    with torch.no_grad():
        maps = model.backbone.forward_intermediates(x, intermediates_only=True)
        logits, last, step = model.head(maps)[0], maps[-1], 1e-5
        found = GradCam(model, [2])(x)
        chosen = [int(logits.argmax()), 2]
        weights = torch.zeros(2, last.shape[1], dtype=torch.float64)
        for channel in range(last.shape[1]):
            moved = last.clone()
            moved[0, channel] += step  # the sum of all positions' derivatives
            change = (model.head([*maps[:-1], moved])[0] - logits) / step
            weights[:, channel] = change[chosen] / last[0, 0].numel()
    torch.testing.assert_close(found["scores"][0], logits)
    expected = torch.einsum("pc,chw->phw", weights, last[0]).relu()
    torch.testing.assert_close(found["grad_cam"][0], expected, atol=1e-6, rtol=1e-3)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_networks_of_others(name: str) -> None:
    model, x = timm.create_model(name, num_classes=5).eval(), torch.randn(1, 3, 160, 160)
    if name == "test_vit":
        with pytest.raises(UsageError, match="is no map"):
            GradCam(model, [])(x)
    else:
        assert GradCam(model, [])(x)["grad_cam"].shape == (1, 1, 5, 5)


def test_a_run_with_another_head(tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images", 4)
    recipe = tiny_finetuning(
        tmp_path, train=str(images), mode="head", head="mlp", head_width=8, head_start="random", epochs=1, batch_size=4
    )
    finetune(recipe, tmp_path / "run", "cpu")
    result = explain(str(tmp_path / "run"), images, tmp_path / "out", classes=["class 2"], device="cpu")
    assert (result.exact, result.gap, result.rows) == (False, None, 12)
    store = densefeat.open_store(result.store)
    assert store.shapes == {"scores": (3, 1, 1), "grad_cam": (2, 8, 8)}
    assert store["grad_cam"].min() >= 0
    model = densefeat.load_run(tmp_path / "run")
    extractor = densefeat.FeatureExtractor(str(tmp_path / "run"), device="cpu", decoder="pillow")
    with torch.no_grad():
        logits = model(extractor.prepare([images / key for key in store.keys]))
    np.testing.assert_allclose(store["scores"], logits.numpy(), atol=1e-4)
    page = result.page.read_text()
    assert "an approximation by the gradient" in page
    assert "no approximation" not in page
    assert result.table.read_text().splitlines()[0] == "path,predicted,probability,score"
