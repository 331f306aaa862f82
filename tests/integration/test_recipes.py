"""The demo runs, as `make demo` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from densefeat import open_store


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "densefeat_recipes.demo", tmp_path], capture_output=True, text=True, check=True
    )
    assert "48 rows, 0 failures" in ended.stdout
    assert len(open_store(tmp_path / "embeddings")) == 48
    assert "block3: " in ended.stdout.splitlines()[-1]
