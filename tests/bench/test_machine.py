"""What the machine is, and the processor time that other processes used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densefeat.bench.machine import describe_machine, format_machine, others_seconds


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads counters from /proc")
def test_a_busy_process_counts_unless_it_is_ours() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        everything, others, again = others_seconds([]), others_seconds([busy.pid]), others_seconds([])
        busy.communicate(b"\n")
    assert everything is not None
    assert others is not None
    assert again is not None
    assert everything - others > 0.4
    assert again >= everything
    assert others_seconds([busy.pid]) >= again  # one that has ended counts as others'


def test_the_record_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["variables"]["OMP_WAIT_POLICY"] == "passive"
    assert {"torch", "timm", "densefeat"} <= machine["versions"].keys()
    assert format_machine(machine).startswith(f"{machine['cpu']}, {machine['threads']} threads (")
    assert format_machine(machine | {"gpu": "a GPU"}).startswith("a GPU; torch ")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads flags from /proc")
def test_instruction_sets_are_those_of_the_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    for flag, name in (("avx2", "AVX2"), ("avx512_vnni", "VNNI"), ("amx_bf16", "AMX-BF16"), ("asimd", "NEON")):
        assert (name in describe_machine()["instruction_sets"]) == (f" {flag} " in flags)


def test_a_processor_of_no_known_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("flags : fpu\n")
    monkeypatch.setattr("densefeat.base.processor._CPUINFO", tmp_path / "cpuinfo")
    machine = describe_machine()
    assert machine["instruction_sets"] == [torch.backends.cpu.get_cpu_capability()]
    assert not machine["bf16"]
