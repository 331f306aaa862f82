"""What the machine is, and what else ran on it meanwhile."""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BUSY = 0.10  # share of the machine's time that others may use unmentioned
PACKAGES = ("densefeat", "torch", "timm", "triton", "openvino", "onnxruntime", "onnx", "numpy")


def cpus() -> set[int]:
    """Those this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Used:
    """Processor seconds so far on our CPUs: by anyone (time stolen by other guests of the host counted in), and by us."""

    at: float
    anyone: float
    ours: float


def used(processes: Iterable[int]) -> Used | None:
    """``processes``: our own, by id. None where the system does not tell (it does on Linux)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{i}" for i in cpus()}
    ticks = os.sysconf("SC_CLK_TCK")
    # user, nice, system, idle, iowait, irq, softirq, steal; what guests of ours use is within user
    fields = [list(map(int, line.split()[1:9])) for line in lines if line.split()[0] in names]
    anyone = sum(sum(each[:3]) + sum(each[5:]) for each in fields) / ticks
    return Used(time.perf_counter(), anyone, sum(process_seconds(each) for each in processes))


def process_seconds(process: int) -> float:
    """Of all its threads and the children it has waited for; 0 once it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def others_share(before: Used | None, after: Used | None) -> float | None:
    """Of the time our CPUs had in between, what others used: 0 to 1."""
    if before is None or after is None or after.at <= before.at:
        return None
    seconds = (after.anyone - before.anyone) - (after.ours - before.ours)
    return min(1.0, max(0.0, seconds / ((after.at - before.at) * len(cpus()))))


def described(device: str) -> dict[str, Any]:
    """For the record: processor, threads, versions."""
    told: dict[str, Any] = {
        "cpu": cpu_name(), "cpus": len(cpus()), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), "libc": "-".join(platform.libc_ver()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "variables": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "KMP_", "MKL_", "MALLOC_"))},
    }  # fmt: skip
    if device == "cuda":
        told["gpu"] = torch.cuda.get_device_name()
    return told | {"versions": {name: found for name in PACKAGES if (found := installed(name))}}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
