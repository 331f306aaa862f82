"""Notice that a model is no longer the one that an engine was built from."""

import ctypes
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Attributes of convolutions, norms and pools, and ``forward`` where an instance has one of its own.
_SETTINGS = frozenset({"stride", "padding", "dilation", "groups", "padding_mode", "kernel_size", "ceil_mode", "eps", "forward"})


class Snapshot:
    """A record of a model's tensors: where they are and what they hold.

    torch counts the writes into a tensor, except those through ``.data`` and numpy. A ``thorough`` snapshot also notices
    these, for tensors on the CPU, by comparing every byte; and it notices replaced parts of the model.
    """

    def __init__(self, model: nn.Module, thorough: bool) -> None:
        features: Any = getattr(model, "features", model)  # of networks of ours, the classifier may change
        self.thorough = thorough
        self.modules = list(dict.fromkeys([model, *features.modules()]))
        self.parts = _collect_parts(self.modules)
        self.tensors = [part for part in self.parts if isinstance(part, torch.Tensor)]
        self.writes = _count_writes(self.tensors)
        on_cpu = [tensor for tensor in self.tensors if tensor.device.type == "cpu"]
        self.copies = [(tensor, tensor.detach().clone()) for tensor in on_cpu] if thorough else []

    def is_current(self) -> bool:
        """Check that the model is still the same."""
        if _count_writes(self.tensors) != self.writes:
            return False
        return not self.thorough or (self.has_same_parts() and all(_has_same_bytes(*pair) for pair in self.copies))

    def has_same_parts(self) -> bool:
        parts = _collect_parts(self.modules)
        return len(parts) == len(self.parts) and all(map(_is_same, parts, self.parts))


def _collect_parts(modules: Iterable[nn.Module]) -> list[Any]:
    """List the objects that modules consist of: submodules, tensors, hooks, and settings such as a norm's ``eps``."""
    parts: list[Any] = []
    for module in modules:
        for members in (module._modules, module._parameters, module._buffers, module._forward_hooks, module._forward_pre_hooks):
            parts.extend(members.values())
        values = vars(module)
        parts.extend(values[name] for name in _SETTINGS.intersection(values))
    return parts


def _is_same(part: Any, recorded: Any) -> bool:
    """Compare settings by value: torch.export replaces a module's tuples by copies."""
    return part is recorded or (isinstance(part, tuple | str | int | float) and part == recorded)


def _count_writes(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Return each tensor's address and torch's count of writes into it."""
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _has_same_bytes(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    if tensor.stride() != copy.stride() or tensor.shape != copy.shape:  # a view with gaps, or a tensor that was reshaped
        return torch.equal(tensor, copy)
    return _MEMCMP(tensor.data_ptr(), copy.data_ptr(), copy.nbytes) == 0


_MEMCMP = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
