"""Clip: a threshold, then an affine map, gives what norm and ReLU give."""

import pytest
import torch
import torch.nn.functional as F

from densefeat.features.engines.cpu.kernels import Clip
from densefeat.features.engines.folded import FoldedConv, FoldedNorm

SCALES = [1.5, 0.01, -0.7, -1e-6, 0.0, 0.0, 1e-38, 3.0]
SHIFTS = [0.2, -1.0, 0.5, -0.3, 0.4, -0.4, 1.0, 0.0]


def make_norm(scales: list[float] = SCALES, shifts: list[float] = SHIFTS) -> FoldedNorm:
    return FoldedNorm(torch.tensor(scales, dtype=torch.float64), torch.tensor(shifts, dtype=torch.float64))


def draw_maps(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def norm_relu(x: torch.Tensor, norm: FoldedNorm) -> torch.Tensor:
    return F.relu(x.double() * norm.scale[:, None, None] + norm.shift[:, None, None])


def apply_affine_rest(clip: Clip, clipped: torch.Tensor) -> torch.Tensor:
    """Compute the affine map that ``clip`` leaves to what follows."""
    threshold, scale, constant = (values[:, None, None] for values in (clip.threshold, clip.scale, clip.constant))
    return (clipped.double() - threshold) * scale + constant


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_equals_norm_and_relu(dtype: torch.dtype, close: float) -> None:
    x, clip = draw_maps(dtype), Clip(make_norm(), dtype)
    clipped = clip(x, torch.empty_like(x))
    assert clipped.isfinite().all()
    torch.testing.assert_close(apply_affine_rest(clip, clipped), norm_relu(x, make_norm()), rtol=close, atol=close)
    torch.testing.assert_close(clip.mean(clipped).double(), norm_relu(x, make_norm()).mean((2, 3)), rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_that_relu_switches_off_are_zero(dtype: torch.dtype) -> None:
    off = make_norm([0.3, -1.7, 2.0], [-100.0, -77.0, -1e4])
    x, clip = draw_maps(dtype)[:, :3], Clip(off, dtype)
    clipped = clip(x, torch.empty_like(x))
    assert not apply_affine_rest(clip, clipped).any()
    assert not clip.mean(clipped).any()


def test_one_comparison_where_no_scale_is_negative() -> None:
    assert Clip(make_norm([1.0, 0.0], [1.0, 1.0]), torch.float32).highest is None
    assert Clip(make_norm([1.0, -1.0], [1.0, 1.0]), torch.float32).highest is not None


@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -0.5]).double()])
def test_folded_into_a_convolution(bias: torch.Tensor | None) -> None:
    weight = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    x, clip = draw_maps(torch.float32), Clip(make_norm(), torch.float32)
    folded = clip.fold_into(FoldedConv(weight, bias, 1, 0, relu=True))
    y = F.conv2d(clip(x, torch.empty_like(x)).double(), folded.weight, folded.bias)
    torch.testing.assert_close(y, F.conv2d(norm_relu(x, make_norm()), weight, bias), rtol=1e-5, atol=1e-5)
    assert folded.relu


def test_rounded_weights_keep_switched_off_maps_at_zero() -> None:
    off = make_norm([0.3, -1.7, 2.0], [-100.0, -77.0, -1e4])
    weight = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    x, clip = draw_maps(torch.bfloat16)[:, :3], Clip(off, torch.bfloat16)
    folded = clip.fold_into(FoldedConv(weight, None, 1, 0, relu=False))
    assert torch.equal(folded.weight, folded.weight.bfloat16().double())
    y = F.conv2d(clip(x, torch.empty_like(x)).double(), folded.weight, folded.bias)
    assert y.abs().max() < 1e-9


def test_the_input_is_not_changed() -> None:
    x = draw_maps(torch.float32)
    before = x.clone()
    Clip(make_norm(), torch.float32)(x, torch.empty_like(x))
    assert torch.equal(x, before)
