"""The Triton engine: ``triton_cases.py`` in Triton's interpreter, and tests that run no kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densefeat import DelugeNet, DenseNet
from densefeat.features.engines.triton.engine import _find_compiler_obstacle, count_traffic, find_triton_obstacle

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(marks: str) -> None:
    """Run the cases in another process: TRITON_INTERPRET=1 has to be set before triton is imported, and stays in effect."""
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-x", "-p", "no:cacheprovider", "-m", marks]
    process = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    run_cases("not slow")


@pytest.mark.slow
def test_every_variant_in_the_interpreter() -> None:
    run_cases("slow")


def test_a_cpu_is_refused() -> None:
    assert find_triton_obstacle(torch.device("cpu")) == "cpu is not an NVIDIA GPU"


@pytest.mark.parametrize(
    ("installed", "name", "obstacle"),
    [
        (["gcc"], None, None),
        (["clang"], None, None),
        ([], None, "triton needs a C compiler: install gcc or clang, or set CC"),
        ([], "mycc", "triton needs a C compiler, and CC=mycc is not a program that can be run"),
        (
            ["gcc"],
            "mycc",
            "triton needs a C compiler, and CC=mycc is not a program that can be run",
        ),  # triton uses CC in any case
        (["mycc"], "mycc", None),
    ],
)
def test_a_compiler_is_needed(
    installed: list[str], name: str | None, obstacle: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for compiler in installed:
        (tmp_path / compiler).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if name is not None:
        monkeypatch.setenv("CC", name)
    assert _find_compiler_obstacle() == obstacle


def test_traffic_of_a_dense_network_counted_by_hand() -> None:
    model = DenseNet(4, (1, 2), 8, bn_size=2, num_classes=2)
    image = 4 * 3 * 20 * 24 + 2 * (3 * 20 * 24 + 3 * 26 * 30)  # read, then written and read with its padding
    stem = 2 * (2 * 8 * 10 * 12 + 8 * 5 * 6)
    block1 = 2 * 5 * 6 * ((8 + 2 * 8 + 4) + 12) + 2 * 2 * 3 * 6
    block2 = 2 * 2 * 3 * ((6 + 2 * 8 + 4) + (10 + 2 * 8 + 4) + 14)
    assert count_traffic(model, 20, 24, torch.bfloat16) == image + stem + block1 + block2


def test_traffic_of_a_deluge_network_counted_by_hand() -> None:
    model = DelugeNet((4, 6), (2, 2), "cifar", num_classes=2)
    image = 4 * 3 * 7 * 8 + 4 * (3 * 7 * 8 + 3 * 9 * 10) + 4 * 4 * 7 * 8
    block1 = 4 * 7 * 8 * ((4 + 4 * 4 + 8) + (8 + 4 * 4 + 8) + 2 * 8 + 8)
    block2 = 4 * (8 * 7 * 8 + 4 * 4 * (12 + (12 + 4 * 6 + 12) + (2 * 12 + 4 * 6 + 12) + 3 * 12))
    assert count_traffic(model, 7, 8, torch.float32) == image + block1 + block2


def test_traffic_of_densenet121() -> None:
    model = DenseNet(num_classes=2)
    assert count_traffic(model, 224, 224, torch.bfloat16) == pytest.approx(45.7e6, rel=0.01)
    assert count_traffic(model, 224, 224, torch.float32) == pytest.approx(90.8e6, rel=0.01)
