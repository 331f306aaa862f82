"""One pass through the plain network, which hands over the maps of the requested blocks and stops after the last one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from densefeat.features.taps import Tap, list_taps
from densefeat.nets import StagedNet

_UseMaps = Callable[[Tap, torch.Tensor], None]


def run_network(model: nn.Module, taps: Sequence[Tap], x: torch.Tensor, use_maps: _UseMaps) -> None:
    """Call ``use_maps`` with each tap and its maps, in the network's order.

    Our networks are read by hooks; other networks by timm's own ``forward_intermediates``, where they have it.
    """
    if isinstance(model, StagedNet) or not hasattr(model, "forward_intermediates"):
        _run_hooked(model, taps, x, use_maps)
        return
    every = list_taps(model, "norm")
    indices = [every.index(tap) for tap in taps]
    forward_intermediates: Any = model.forward_intermediates
    maps = forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
    for tap, tap_maps in zip(taps, maps, strict=True):
        use_maps(tap, tap_maps)


class _LastTapReached(Exception):
    """The exception that ends a forward pass from inside a hook."""


def _run_hooked(model: nn.Module, taps: Sequence[Tap], x: torch.Tensor, use_maps: _UseMaps) -> None:
    pending = {tap.module for tap in taps}

    def make_hook(tap: Tap) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            use_maps(tap, output)
            pending.discard(tap.module)
            if not pending:
                raise _LastTapReached

        return hook

    handles = [model.get_submodule(tap.module).register_forward_hook(make_hook(tap)) for tap in taps]
    try:
        model(x)
    except _LastTapReached:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, and each of its modules back into its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep CUDA from rounding float32 convolutions to TF32, with which features would depend on the rest of the batch."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        yield
        return
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
