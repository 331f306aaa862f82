"""Whether a model is still what an engine was built from."""

import ctypes
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# of convolutions, norms and pools; ``forward``: set on an instance
_SETTINGS = frozenset({"stride", "padding", "dilation", "groups", "padding_mode", "kernel_size", "ceil_mode", "eps", "forward"})


class Snapshot:
    """What a model's tensors held, and where.

    torch counts writes into a tensor, all but those through ``.data`` and numpy. On the CPU, a ``thorough`` snapshot notices
    these as well, by comparing every byte, and any part of the model that is another. The classifier may change.
    """

    def __init__(self, model: nn.Module, thorough: bool) -> None:
        features: Any = model.features
        self.thorough = thorough
        self.modules = [model, *features.modules()]
        self.parts = _parts(self.modules)
        self.tensors = [part for part in self.parts if isinstance(part, torch.Tensor)]
        self.written = _writes(self.tensors)
        on_cpu = [tensor for tensor in self.tensors if tensor.device.type == "cpu"]
        self.copies = [(tensor, tensor.detach().clone()) for tensor in on_cpu] if thorough else []

    def holds(self) -> bool:
        if _writes(self.tensors) != self.written:
            return False
        return not self.thorough or (self.same_parts() and all(_same_bytes(*pair) for pair in self.copies))

    def same_parts(self) -> bool:
        now = _parts(self.modules)
        return len(now) == len(self.parts) and all(a is b for a, b in zip(now, self.parts, strict=True))


def _parts(modules: Iterable[nn.Module]) -> list[Any]:
    """What the modules are made of: submodules, hooks, tensors, and plain values such as a norm's ``eps``, as objects."""
    found: list[Any] = []
    for module in modules:
        for members in (module._modules, module._parameters, module._buffers, module._forward_hooks, module._forward_pre_hooks):
            found.extend(members.values())
        values = vars(module)
        found.extend(values[name] for name in _SETTINGS.intersection(values))
    return found


def _writes(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Where each tensor lies, and how often torch has counted it written."""
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _same_bytes(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    if tensor.stride() != copy.stride() or tensor.shape != copy.shape:  # not dense, or given another shape
        return torch.equal(tensor, copy)
    return _MEMCMP(tensor.data_ptr(), copy.data_ptr(), copy.nbytes) == 0


_MEMCMP = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
