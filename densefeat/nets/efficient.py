"""Concatenation, BatchNorm, ReLU and convolution as one autograd function that stores no intermediate result.

The inputs of a dense layer are shared with all later layers. Their concatenation, normalised and rectified, is not: over the
layers of a block it takes memory quadratic in depth. It is cheap to compute, so the backward pass computes it again
(Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv 1707.06990, section 3). Convolutions run once, and so do
BatchNorm's reductions: the batch statistics of a map are the same for every layer that reads it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def norm_relu_conv(
    features: list[torch.Tensor],
    norm: nn.Module,
    act: nn.Module,
    conv: nn.Module,
    statistics: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Compute ``conv(act(norm(torch.cat(features, 1))))`` and store only the inputs for the backward pass.

    Gradients are first order. Norms other than BatchNorm2d (synchronised, frozen, replaced ones), activations other than ReLU,
    convolutions other than a plain Conv2d without bias, and modules with hooks are called as modules: the result is the same,
    and intermediate results are stored.

    Args:
        features: Tensors ``(N, C_i, H, W)``, whose channels add up to the norm's.
        statistics: The results of :func:`_compute_batch_statistics` for the first of ``features``; those of the others are
            appended where they are needed. The layers of a block share one such list.

    Raises:
        ValueError: One value per channel in training mode.
    """
    if type(norm) is not nn.BatchNorm2d or type(act) is not nn.ReLU or has_hooks(norm, act) or not is_plain_conv(conv):
        return conv(act(norm(torch.cat(features, 1))))
    assert isinstance(conv, nn.Conv2d)  # for mypy
    from_batch = norm.training or norm.running_mean is None
    if from_batch:
        variance, mean = _collect_statistics(features, [] if statistics is None else statistics).unbind()
        if norm.training:
            _update_running_statistics(norm, variance, mean, _count_values(features[0]))
    else:
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        variance, mean = widen(norm.running_var), widen(norm.running_mean)
    weight, bias = (None if p is None else p.to(mean.dtype) for p in (norm.weight, norm.bias))
    conv_args = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _NormReluConv.apply(
        norm.eps, from_batch, conv_args, variance, mean, weight, bias, _autocast_kernel(conv.weight), *features
    )


class _NormReluConv(torch.autograd.Function):
    """The function behind :func:`norm_relu_conv`.

    Statistics are passed as constants; with ``from_batch`` they are the features' own, and the gradient accounts for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        eps: float,
        from_batch: bool,
        conv_args: tuple[Any, ...],
        variance: torch.Tensor,
        mean: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        kernel: torch.Tensor,
        *features: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(variance, mean, weight, bias, kernel, *features)
        ctx.eps, ctx.from_batch, ctx.conv_args = eps, from_batch, conv_args
        x = _norm_relu(_concat(features), variance, mean, weight, bias, eps)
        return F.conv2d(x.to(kernel.dtype), kernel, None, *conv_args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        variance, mean, weight, bias, kernel, *features = ctx.saved_tensors
        needs = ctx.needs_input_grad
        needs_weight, needs_bias, needs_kernel, needs_features = needs[5], needs[6], needs[7], any(needs[8:])
        stride, padding, dilation, groups = ctx.conv_args
        grad_weight = grad_bias = None
        grad_features: tuple[torch.Tensor | None, ...] = (None,) * len(features)

        x = _concat(features)
        activated = _norm_relu(x, variance, mean, weight, bias, ctx.eps)
        grad, grad_kernel, _ = torch.ops.aten.convolution_backward(
            grad, activated.to(kernel.dtype), kernel, None, stride, padding, dilation, False, (0, 0), groups,
            (needs_features or needs_weight or needs_bias, needs_kernel, False),
        )  # fmt: skip
        if needs_features or needs_weight or needs_bias:
            grad = torch.ops.aten.threshold_backward(grad.to(x.dtype), activated, 0)
            del activated
            running = (None, None, mean, torch.rsqrt(variance + ctx.eps)) if ctx.from_batch else (mean, variance, None, None)
            grad, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, *running, ctx.from_batch, ctx.eps, (needs_features, needs_weight, needs_bias)
            )
        if needs_features:
            grad_features = grad.split([feature.shape[1] for feature in features], 1)
        return None, None, None, None, None, grad_weight, grad_bias, grad_kernel, *grad_features


def _concat(features: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> torch.Tensor:
    """Concatenate over channels, without a copy of a single tensor."""
    return features[0] if len(features) == 1 else torch.cat(features, 1)


def _norm_relu(
    x: torch.Tensor,
    variance: torch.Tensor,
    mean: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Apply BatchNorm with known statistics, then ReLU: the same bits in the forward and in the backward pass."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps).relu_()


def _collect_statistics(features: list[torch.Tensor], statistics: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate the features' batch statistics, ``(2, C)``; those missing from ``statistics`` are appended to it."""
    statistics.extend(_compute_batch_statistics(feature) for feature in features[len(statistics) :])
    return torch.cat(statistics, 1)


def _compute_batch_statistics(feature: torch.Tensor) -> torch.Tensor:
    """Compute from ``(N, C, H, W)`` each channel's variance (biased) and mean, ``(2, C)``, as constants."""
    if _count_values(feature) == 1:
        raise ValueError(f"input of shape {tuple(feature.shape)}: BatchNorm in training needs more than 1 value per channel")
    x = widen(feature.detach())
    if x.is_cuda:
        return torch.stack(torch.var_mean(x, (0, 2, 3), correction=0))
    mean = x.mean((0, 2, 3), keepdim=True)  # two passes take a fifth of the time of var_mean on the CPU
    return torch.stack(((x - mean).square_().mean((0, 2, 3)), mean.flatten()))


@torch.no_grad()
def _update_running_statistics(norm: nn.BatchNorm2d, variance: torch.Tensor, mean: torch.Tensor, values: int) -> None:
    """Update the buffers as a call of ``norm`` in training mode does; ``values``: numbers per channel."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # torch then averages over all batches
            momentum = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (values / (values - 1))).to(norm.running_var.dtype), momentum)


def is_affine_norm(norm: nn.Module) -> bool:
    """Check whether a norm in eval mode is ``(x - running_mean) / sqrt(running_var + eps) * weight + bias``.

    That is a BatchNorm, synchronised or not, with weights and statistics.
    """
    if type(norm) is nn.BatchNorm2d or type(norm) is nn.SyncBatchNorm:
        return norm.running_mean is not None and norm.running_var is not None and norm.weight is not None
    return False


def is_plain_conv(conv: nn.Module) -> bool:
    zeros = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.bias is None and not has_hooks(conv)


def has_hooks(*modules: nn.Module) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _autocast_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Convert ``kernel`` as autocast does for convolutions, where it is enabled."""
    device = kernel.device.type
    if kernel.is_meta or kernel.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return kernel  # the meta device has no autocast, and autocast does not convert float64
    return kernel.to(torch.get_autocast_dtype(device))


def widen(values: torch.Tensor) -> torch.Tensor:
    """Convert to float32 at least, in which torch's BatchNorm computes."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _count_values(feature: torch.Tensor) -> int:
    """Count the values per channel."""
    return feature.numel() // feature.shape[1]
