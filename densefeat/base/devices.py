"""The choice of the device to compute on."""

import os

import torch

from densefeat.base.ranks import Ranks
from densefeat.errors import UsageError


def choose_device(device: str | torch.device | None = "auto", ranks: Ranks | None = None) -> torch.device:
    """Return a device that torch can use.

    Args:
        device: ``"auto"``: CUDA, MPS or the CPU, the first that exists. None: CUDA or the CPU, for training, which is not
            tested on MPS. Else the device's name.
        ranks: Where several processes share a machine, each gets a GPU for itself, unless ``device`` names one.

    Raises UsageError where torch does not know or have the device, or there are fewer GPUs than processes.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r}: no such kind of device; this machine has {_list_devices()}") from error
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's reasons fill many lines
        raise UsageError(f"device {str(device)!r} cannot be used; this machine has {_list_devices()}") from error
    if chosen.type != "cuda" or chosen.index is not None or ranks is None or ranks.world == 1:
        return chosen
    if ranks.local >= torch.cuda.device_count():
        raise UsageError(
            f"process {ranks.local} of this machine has no GPU for itself ({torch.cuda.device_count()} here):"
            " start as many processes as there are GPUs, or give --device cpu"
        )
    return torch.device("cuda", ranks.local)


def _list_devices() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    return f"cpu, {', '.join(f'{accelerator.type}:{i}' for i in range(torch.accelerator.device_count()))}"


def count_usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
