"""What the machine is, and how much of it other processes used meanwhile."""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("densefeat", "torch", "timm", "triton", "openvino", "onnxruntime", "onnx", "numpy")
_INSTRUCTION_SETS = {  # name of Linux's flag: name that people use
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI",
    "amx_bf16": "AMX-BF16", "amx_int8": "AMX-INT8", "asimd": "NEON", "sve": "SVE", "bf16": "BF16", "i8mm": "I8MM",
}  # fmt: skip


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, instruction sets, threads and versions, for the JSON record beside every measurement."""
    machine: dict[str, Any] = {
        "cpu": _cpu_name(), "cpus": len(_usable_cpus()), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), "libc": "-".join(platform.libc_ver()),
        "capability": torch.backends.cpu.get_cpu_capability(), "instruction_sets": _instruction_sets(),
        "variables": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "KMP_", "MKL_", "MALLOC_"))},
    }  # fmt: skip
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine | {"versions": {name: found for name in _PACKAGES if (found := _installed_version(name))}}


def format_machine(machine: dict[str, Any]) -> str:
    """One line for the head of a table, from what :func:`describe_machine` returned."""
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads ({', '.join(machine['instruction_sets'])})"
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "timm") if name in machine["versions"])
    return f"{where}; {versions}"


def _instruction_sets() -> list[str]:
    """The vector and matrix instructions that decide how fast a network runs here."""
    flags = set(_cpu_field("flags", "Features").split())
    return [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags] or [torch.backends.cpu.get_cpu_capability()]


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_field(*names: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty where the system has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in names), "")


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable_cpus() -> set[int]:
    """The processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class CpuTime:
    """Processor seconds spent so far on the usable processors: by all processes (and other guests of the host), and by ours."""

    at: float
    total: float
    ours: float


def read_cpu_time(processes: Iterable[int]) -> CpuTime | None:
    """Read the counters. ``processes``: our own, by id. None where the system has no counters (Linux has)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{i}" for i in _usable_cpus()}
    # user, nice, system, idle, iowait, irq, softirq, steal; the time of guests of ours is part of user
    fields = [list(map(int, line.split()[1:9])) for line in lines if line.split()[0] in names]
    total = sum(sum(each[:3]) + sum(each[5:]) for each in fields) / os.sysconf("SC_CLK_TCK")
    return CpuTime(time.perf_counter(), total, sum(_process_seconds(each) for each in processes))


def _process_seconds(process: int) -> float:
    """Processor seconds of all threads and of the children that have ended; 0 once the process is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before may hold any character
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def share_of_others(before: CpuTime | None, after: CpuTime | None) -> float | None:
    """The share of the processors' time in between that other processes used, 0 to 1."""
    if before is None or after is None or after.at <= before.at:
        return None
    seconds = (after.total - before.total) - (after.ours - before.ours)
    return min(1.0, max(0.0, seconds / ((after.at - before.at) * len(_usable_cpus()))))
