"""Processors with other instruction sets than this one: densefeat reads them from a file, and torch emulates what is not there."""

from collections.abc import Callable
from pathlib import Path

import pytest

AVX2, AVX512_BF16 = "fma avx f16c avx2", "avx2 avx512f avx512_bf16 avx512_fp16"


@pytest.fixture
def pretend_flags(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that lets the rest of the test run on a processor with these flags."""
    file = tmp_path_factory.mktemp("processor") / "cpuinfo"
    monkeypatch.setattr("densefeat.base.processor._CPUINFO", Path(file))

    def pretend(flags: str) -> None:
        file.write_text(f"processor\t: 0\nmodel name\t: A processor\nflags\t\t: fpu sse2 {flags}\n\nprocessor\t: 1\n")

    return pretend


@pytest.fixture
def with_bf16(pretend_flags: Callable[[str], None]) -> None:
    pretend_flags(AVX512_BF16)


@pytest.fixture
def without_bf16(pretend_flags: Callable[[str], None]) -> None:
    pretend_flags(AVX2)
