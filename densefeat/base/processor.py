"""What the processor computes itself, and what it would emulate."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {  # by precision, a flag of Linux's or a capability that torch names is enough: x86, then ARM
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp", "fp16_arith"},
}
LOG = logging.getLogger("densefeat")


def read_cpu_field(*names: str) -> str:
    """Read the first value of a field of /proc/cpuinfo; empty where the system or the processor has none."""
    with suppress(OSError), _CPUINFO.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""


def read_cpu_flags() -> set[str]:
    """Read the processor's instruction sets: Linux's flags, or elsewhere what torch finds, if this version looks."""
    if flags := read_cpu_field("flags", "Features").split():
        return set(flags)
    find = getattr(torch.cpu, "get_capabilities", dict)
    return {name for name, value in find().items() if value is True}


def has_arithmetic(precision: str, flags: Iterable[str] | None = None) -> bool:
    """Return whether the processor computes in a precision itself.

    A processor that does not emulates it, at a fraction of its speed in float32. What oneDNN calls supported may be emulated.

    Args:
        precision: As extractors or recipes name it; all but ``"bf16"`` and ``"fp16"`` are everywhere.
        flags: The instruction sets; None: those of this processor.
    """
    wanted = _INSTRUCTIONS.get(precision)
    return wanted is None or not wanted.isdisjoint(read_cpu_flags() if flags is None else flags)


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the precision to extract in: ``"fp32"``, with a line in the log, where a CPU would emulate ``precision``."""
    if device.type != "cpu" or has_arithmetic(precision):
        return precision
    LOG.warning("%s", describe_fallback(precision, "fp32"))
    return "fp32"


def describe_fallback(precision: str, full: str) -> str:
    """Say in one line that ``full`` is computed in place of a precision that the processor would emulate."""
    lacks = "has no arithmetic" if read_cpu_flags() else "is not known to have arithmetic"  # not every system tells
    return f"precision: {full} (this processor {lacks} in {precision}, and emulating it is several times slower)"
