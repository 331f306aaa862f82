"""Concatenation, BatchNorm, ReLU and convolution as one step of autograd that keeps nothing of what lies between.

What a dense layer reads it shares with all layers after it; what it makes of it by concatenation, normalisation and ReLU is
its own, and over a block's layers grows with the square of the depth. It is cheap to make again, so the backward pass does
(Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv 1707.06990, section 3). Convolutions are never run twice,
nor are BatchNorm's reductions: a map's batch statistics are the same for every layer that reads it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd.function import once_differentiable


def norm_relu_conv(
    features: list[torch.Tensor],
    norm: nn.Module,
    conv: nn.Module,
    act: nn.Module | None = None,
    statistics: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """``conv(relu(norm(torch.cat(features, 1))))`` that holds for the backward pass only its inputs.

    Gradients are first order. Norms other than BatchNorm2d and timm's BatchNormAct2d with ReLU (synchronised, frozen, replaced
    ones), convolutions other than a plain Conv2d without bias, and modules with hooks of their own are called as modules:
    correct, but what lies between is held.

    Args:
        features: Tensors ``(N, C_i, H, W)``; their channels together are the norm's.
        act: The ReLU module after ``norm``; None where ``norm`` has it within.
        statistics: Of the first of ``features``, what :func:`_batch_statistics` gave; the others' are appended where they are
            needed. A block's layers share one such list.

    Raises:
        ValueError: One value per channel in training mode.
    """
    if not (is_plain_norm(norm, act) and is_plain_conv(conv)):
        x = norm(torch.cat(features, 1))
        return conv(x if act is None else act(x))
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)  # noqa: PT018  (for mypy)
    of_batch = norm.training or norm.running_mean is None
    if of_batch:
        variance, mean = _collected(features, [] if statistics is None else statistics).unbind()
        if norm.training:
            _update_running_statistics(norm, variance, mean, _count(features[0]))
    else:
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        variance, mean = widened(norm.running_var), widened(norm.running_mean)
    weight, bias = (None if p is None else p.to(mean.dtype) for p in (norm.weight, norm.bias))
    arguments = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _NormReluConv.apply(norm.eps, of_batch, arguments, variance, mean, weight, bias, _autocast(conv.weight), *features)


class _NormReluConv(torch.autograd.Function):
    """Statistics come as constants; with ``of_batch`` the gradient accounts for their being the features' own."""

    @staticmethod
    def forward(
        ctx: Any,
        eps: float,
        of_batch: bool,
        arguments: tuple[Any, ...],
        variance: torch.Tensor,
        mean: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        kernel: torch.Tensor,
        *features: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(variance, mean, weight, bias, kernel, *features)
        ctx.eps, ctx.of_batch, ctx.arguments = eps, of_batch, arguments
        x = _norm_relu(_concatenated(features), variance, mean, weight, bias, eps)
        return F.conv2d(x.to(kernel.dtype), kernel, None, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        variance, mean, weight, bias, kernel, *features = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_weight, of_bias, of_kernel, of_features = wanted[5], wanted[6], wanted[7], any(wanted[8:])
        stride, padding, dilation, groups = ctx.arguments
        grad_weight = grad_bias = None
        grad_features: tuple[torch.Tensor | None, ...] = (None,) * len(features)

        x = _concatenated(features)
        activated = _norm_relu(x, variance, mean, weight, bias, ctx.eps)
        grad, grad_kernel, _ = torch.ops.aten.convolution_backward(
            grad, activated.to(kernel.dtype), kernel, None, stride, padding, dilation, False, (0, 0), groups,
            (of_features or of_weight or of_bias, of_kernel, False),
        )  # fmt: skip
        if of_features or of_weight or of_bias:
            grad = torch.ops.aten.threshold_backward(grad.to(x.dtype), activated, 0)
            del activated
            running = (None, None, mean, torch.rsqrt(variance + ctx.eps)) if ctx.of_batch else (mean, variance, None, None)
            grad, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, *running, ctx.of_batch, ctx.eps, (of_features, of_weight, of_bias)
            )
        if of_features:
            grad_features = grad.split([feature.shape[1] for feature in features], 1)
        return None, None, None, None, None, grad_weight, grad_bias, grad_kernel, *grad_features


def _concatenated(features: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> torch.Tensor:
    """``torch.cat``, but no copy of a single one."""
    return features[0] if len(features) == 1 else torch.cat(features, 1)


def _norm_relu(
    x: torch.Tensor,
    variance: torch.Tensor,
    mean: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """The affine map that BatchNorm is once its statistics are known, then ReLU: bit for bit the same at every call."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps).relu_()


def _collected(features: list[torch.Tensor], statistics: list[torch.Tensor]) -> torch.Tensor:
    """The features' batch statistics side by side, ``(2, C)``; ``statistics`` gets those that it lacks."""
    statistics.extend(_batch_statistics(feature) for feature in features[len(statistics) :])
    return torch.cat(statistics, 1)


def _batch_statistics(feature: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` to each channel's variance (biased) and mean, ``(2, C)``, as constants."""
    if _count(feature) == 1:
        raise ValueError(f"input of shape {tuple(feature.shape)}: BatchNorm in training needs more than 1 value per channel")
    x = widened(feature.detach())
    if x.is_cuda:
        return torch.stack(torch.var_mean(x, (0, 2, 3), correction=0))
    mean = x.mean((0, 2, 3), keepdim=True)  # on the CPU, two passes take a fifth of var_mean's time
    return torch.stack(((x - mean).square_().mean((0, 2, 3)), mean.flatten()))


@torch.no_grad()
def _update_running_statistics(norm: nn.BatchNorm2d, variance: torch.Tensor, mean: torch.Tensor, values: int) -> None:
    """What a call of ``norm`` in training mode does to its buffers; ``values``: how many a channel has."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean over all batches
            momentum = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (values / (values - 1))).to(norm.running_var.dtype), momentum)


def is_plain_norm(norm: nn.Module, act: nn.Module | None) -> bool:
    if type(norm) is BatchNormAct2d and act is None:
        return type(norm.act) is nn.ReLU and type(norm.drop) is nn.Identity and not has_hooks(norm, norm.act)
    return type(norm) is nn.BatchNorm2d and type(act) is nn.ReLU and not has_hooks(norm, act)


def is_plain_conv(conv: nn.Module) -> bool:
    zeros = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.bias is None and not has_hooks(conv)


def has_hooks(*modules: nn.Module) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _autocast(kernel: torch.Tensor) -> torch.Tensor:
    """``kernel`` as autocast, where it is enabled, hands it to a convolution."""
    device = kernel.device.type
    if kernel.is_meta or kernel.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return kernel  # meta knows no autocast, and autocast leaves float64
    return kernel.to(torch.get_autocast_dtype(device))


def widened(values: torch.Tensor) -> torch.Tensor:
    """In float32 at least, as torch's own BatchNorm computes."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _count(feature: torch.Tensor) -> int:
    """Values per channel."""
    return feature.numel() // feature.shape[1]
