"""The Triton engine: ``triton_cases.py`` in Triton's interpreter, and what needs no kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densefeat import DelugeNet, DenseNet
from densefeat.features.engines.folded import fold
from densefeat.features.engines.triton.engine import _missing_compiler, traffic, triton_obstacle

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(which: str) -> None:
    """In a process of its own: TRITON_INTERPRET=1 must be set before triton is imported, and would hold for all tests after."""
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-x", "-p", "no:cacheprovider", "-m", which]
    ran = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_in_the_interpreter() -> None:
    run_cases("not slow")


@pytest.mark.slow
def test_every_variant_in_the_interpreter() -> None:
    run_cases("slow")


def test_a_cpu_is_no_gpu() -> None:
    assert triton_obstacle(torch.device("cpu")) == "cpu is no NVIDIA GPU"


@pytest.mark.parametrize(
    ("installed", "named", "found"),
    [
        (["gcc"], None, None),
        (["clang"], None, None),
        ([], None, "triton needs a C compiler: install gcc or clang, or set CC"),
        ([], "mycc", "triton needs a C compiler, and CC=mycc is none that can be run"),
        (["gcc"], "mycc", "triton needs a C compiler, and CC=mycc is none that can be run"),  # triton takes CC, right or wrong
        (["mycc"], "mycc", None),
    ],
)
def test_a_compiler_is_needed(
    installed: list[str], named: str | None, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in installed:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if named is not None:
        monkeypatch.setenv("CC", named)
    assert _missing_compiler() == found


def test_traffic_of_a_dense_network_counted_by_hand() -> None:
    network = fold(DenseNet(4, (1, 2), 8, bn_size=2, num_classes=2))
    image = 4 * 3 * 20 * 24 + 2 * (3 * 20 * 24 + 3 * 26 * 30)  # read; written and read with its padding
    stem = 2 * (2 * 8 * 10 * 12 + 8 * 5 * 6)
    block1 = 2 * 5 * 6 * ((8 + 2 * 8 + 4) + 12) + 2 * 2 * 3 * 6
    block2 = 2 * 2 * 3 * ((6 + 2 * 8 + 4) + (10 + 2 * 8 + 4) + 14)
    assert traffic(network, 20, 24, torch.bfloat16) == image + stem + block1 + block2


def test_traffic_of_a_deluge_network_counted_by_hand() -> None:
    network = fold(DelugeNet((4, 6), (2, 2), "cifar", num_classes=2))
    image = 4 * 3 * 7 * 8 + 4 * (3 * 7 * 8 + 3 * 9 * 10) + 4 * 4 * 7 * 8
    block1 = 4 * 7 * 8 * ((4 + 4 * 4 + 8) + (8 + 4 * 4 + 8) + 2 * 8 + 8)
    block2 = 4 * (8 * 7 * 8 + 4 * 4 * (12 + (12 + 4 * 6 + 12) + (2 * 12 + 4 * 6 + 12) + 3 * 12))
    assert traffic(network, 7, 8, torch.float32) == image + block1 + block2


def test_traffic_of_densenet121() -> None:
    network = fold(DenseNet(num_classes=2))
    assert traffic(network, 224, 224, torch.bfloat16) == pytest.approx(45.7e6, rel=0.01)
    assert traffic(network, 224, 224, torch.float32) == pytest.approx(90.8e6, rel=0.01)
