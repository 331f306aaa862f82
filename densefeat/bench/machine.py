"""What the machine is, and how much of it other processes used meanwhile."""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from densefeat.base import has_arithmetic, read_cpu_field, read_cpu_flags

_PACKAGES = ("densefeat", "torch", "timm", "triton", "openvino", "onnxruntime", "onnx", "numpy")
_INSTRUCTION_SETS = {  # name of Linux's flag: name that people use
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI",
    "amx_bf16": "AMX-BF16", "amx_int8": "AMX-INT8", "asimd": "NEON", "sve": "SVE", "bf16": "BF16", "i8mm": "I8MM",
}  # fmt: skip
_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES")  # of threads and memory
USABLE_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, instruction sets, threads and versions, for the JSON record beside every measurement."""
    flags, capability, versions = read_cpu_flags(), torch.backends.cpu.get_cpu_capability(), {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {
        "cpu": read_cpu_field("model name") or platform.processor() or platform.machine(), "cpus": len(USABLE_CPUS),
        "threads": torch.get_num_threads(), "system": platform.platform(), "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()), "capability": capability,
        "instruction_sets": [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags] or [capability],
        "bf16": has_arithmetic("bf16", flags),
        "variables": {key: value for key, value in os.environ.items() if key.startswith(_VARIABLES)},
        **gpu, "versions": versions,
    }  # fmt: skip


def format_machine(machine: dict[str, Any]) -> str:
    """One line for the head of a table, from what :func:`describe_machine` returned."""
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instruction_sets'])})"
    return ", ".join([f"{where}; torch {machine['versions']['torch']}", f"timm {machine['versions']['timm']}"])


def others_seconds(processes: Iterable[int]) -> float | None:
    """Processor seconds so far that others than ``processes`` (ids) used of the usable processors, guests of the host included.

    None where the system has no counters (Linux has).
    """
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{i}" for i in USABLE_CPUS}
    # user, nice, system, idle, iowait, irq, softirq, steal; the time of guests of ours is part of user
    used = sum(int(line[i]) for line in lines if line[0] in names for i in (1, 2, 3, 6, 7, 8))
    for process in processes:
        with suppress(OSError):  # it has ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # a name may hold any character
            used -= sum(map(int, fields[11:15]))  # of all threads, and of children that have ended
    return used / os.sysconf("SC_CLK_TCK")
