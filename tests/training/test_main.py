"""``python -m densefeat.training`` as a process, on a machine with few packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.runs import FAST, PROCESS_ENVIRONMENT, tiny_overrides

ABSENT = ("scipy", "sklearn", "matplotlib", "bokeh", "click", "pydantic", "datasets", "tensorboard", "threadpoolctl")
RUN = f"""
import runpy, sys
sys.modules |= dict.fromkeys({ABSENT})
from support import tiny_net
runpy.run_module("densefeat.training", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_training_with_few_packages(tmp_path: Path) -> None:
    arguments = [str(FAST), *tiny_overrides(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu", "--steps", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=240, env=PROCESS_ENVIRONMENT
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path / 'run'}: stopped at step 1 of 8; the same command resumes the run\n"
