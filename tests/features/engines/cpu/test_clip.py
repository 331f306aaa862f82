"""Clip: a threshold and an affine map that follows are what norm and ReLU give."""

import pytest
import torch
import torch.nn.functional as F

from densefeat.features.engines.cpu.clip import Clip
from densefeat.features.engines.folded import Conv, Norm

SCALES = [1.5, 0.01, -0.7, -1e-6, 0.0, 0.0, 1e-38, 3.0]
SHIFTS = [0.2, -1.0, 0.5, -0.3, 0.4, -0.4, 1.0, 0.0]


def norm(scales: list[float] = SCALES, shifts: list[float] = SHIFTS) -> Norm:
    return Norm(torch.tensor(scales, dtype=torch.float64), torch.tensor(shifts, dtype=torch.float64))


def drawn(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def rectified(x: torch.Tensor, of: Norm) -> torch.Tensor:
    return F.relu(x.double() * of.scale[:, None, None] + of.shift[:, None, None])


def linear(clip: Clip, clipped: torch.Tensor) -> torch.Tensor:
    """What is left after ``clip``."""
    threshold, scale, constant = (values[:, None, None] for values in (clip.threshold, clip.scale, clip.constant))
    return (clipped.double() - threshold) * scale + constant


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_is_norm_and_relu(dtype: torch.dtype, close: float) -> None:
    x, clip = drawn(dtype), Clip(norm(), dtype)
    clipped = clip(x, torch.empty_like(x))
    assert clipped.isfinite().all()
    torch.testing.assert_close(linear(clip, clipped), rectified(x, norm()), rtol=close, atol=close)
    torch.testing.assert_close(clip.mean(clipped).double(), rectified(x, norm()).mean((2, 3)), rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_relu_switches_off_is_zero(dtype: torch.dtype) -> None:
    off = norm([0.3, -1.7, 2.0], [-100.0, -77.0, -1e4])
    x, clip = drawn(dtype)[:, :3], Clip(off, dtype)
    clipped = clip(x, torch.empty_like(x))
    assert not linear(clip, clipped).any()
    assert not clip.mean(clipped).any()


def test_one_comparison_where_no_scale_is_negative() -> None:
    assert Clip(norm([1.0, 0.0], [1.0, 1.0]), torch.float32).highest is None
    assert Clip(norm([1.0, -1.0], [1.0, 1.0]), torch.float32).highest is not None


@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -0.5]).double()])
def test_folded_into_a_convolution(bias: torch.Tensor | None) -> None:
    weight = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    x, clip = drawn(torch.float32), Clip(norm(), torch.float32)
    folded = clip.folded_into(Conv(weight, bias, 1, 0, relu=True))
    found = F.conv2d(clip(x, torch.empty_like(x)).double(), folded.weight, folded.bias)
    torch.testing.assert_close(found, F.conv2d(rectified(x, norm()), weight, bias), rtol=1e-5, atol=1e-5)
    assert folded.relu


def test_folded_into_rounded_weights_what_is_off_is_off() -> None:
    off = norm([0.3, -1.7, 2.0], [-100.0, -77.0, -1e4])
    weight = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    x, clip = drawn(torch.bfloat16)[:, :3], Clip(off, torch.bfloat16)
    folded = clip.folded_into(Conv(weight, None, 1, 0, relu=False))
    assert torch.equal(folded.weight, folded.weight.bfloat16().double())
    found = F.conv2d(clip(x, torch.empty_like(x)).double(), folded.weight, folded.bias)
    assert found.abs().max() < 1e-9


def test_nothing_is_written_into_the_input() -> None:
    x = drawn(torch.float32)
    before = x.clone()
    Clip(norm(), torch.float32)(x, torch.empty_like(x))
    assert torch.equal(x, before)
