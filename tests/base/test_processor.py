"""What a processor computes itself, by flags that are given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densefeat.base import choose_precision, has_arithmetic, read_cpu_field, read_cpu_flags
from support.processors import AVX2, AVX512_BF16


@pytest.mark.parametrize(
    ("flags", "bf16", "fp16"),
    [
        ("sse2 avx2 fma", False, False),
        ("avx2 avx512f avx512bw avx512_vnni", False, False),  # oneDNN says that it supports bf16 there, by emulation
        ("avx2 avx512f avx512_bf16", True, False),
        ("avx512f avx512_bf16 amx_bf16 avx512_fp16", True, True),
        ("amx_tile amx_bf16", True, False),
        ("amx_tile amx_int8", False, False),
        ("fp asimd fphp asimdhp", False, True),
        ("fp asimd asimdhp i8mm bf16", True, True),
        ("", False, False),
    ],
)
def test_arithmetic(flags: str, bf16: bool, fp16: bool) -> None:
    assert has_arithmetic("bf16", flags.split()) == bf16
    assert has_arithmetic("fp16", flags.split()) == fp16
    assert all(has_arithmetic(name, flags.split()) for name in ("fp32", "float32", "float64"))


def test_fields_of_x86_and_of_arm(
    pretend_flags: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_flags(AVX512_BF16)
    assert read_cpu_field("model name") == "A processor"
    assert read_cpu_flags() == {"fpu", "sse2", *AVX512_BF16.split()}
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd4f\n")
    monkeypatch.setattr("densefeat.base.processor._CPUINFO", arm)
    assert read_cpu_flags() == {"fp", "asimd", "bf16"}
    assert read_cpu_field("model name") == ""


def test_elsewhere_torch_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.base.processor._CPUINFO", tmp_path / "none")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True, "bf16": True, "sve": False, "l2_cache_size": 1})
    assert read_cpu_flags() == {"neon", "bf16"}


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ({}, "this processor is not known to have arithmetic in bf16, "),
        ({"avx2": True}, "this processor has no arithmetic in bf16, "),
    ],
)
def test_what_nobody_tells_is_not_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: dict[str, bool],
    said: str,
) -> None:
    monkeypatch.setattr("densefeat.base.processor._CPUINFO", tmp_path / "none")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("bf16", torch.device("cpu")) == "fp32"
    assert said in caplog.text


def test_only_a_cpu_that_would_emulate_falls_back(
    pretend_flags: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend_flags(AVX2)
    assert choose_precision("bf16", torch.device("cuda")) == "bf16"
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    assert not caplog.records
    assert choose_precision("bf16", torch.device("cpu")) == "fp32"
    (record,) = caplog.records
    assert record.getMessage().startswith("precision: fp32 (this processor has no arithmetic in bf16, ")
    pretend_flags(AVX512_BF16)
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert len(caplog.records) == 1
