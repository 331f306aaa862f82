"""Libraries that would send statistics do not, and leave no id of the machine behind, once densefeat is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from densefeat.base.telemetry import _SWITCHES, refuse_telemetry

IMPORTS = {  # what would send or store something when it is imported, or what it says of itself
    "openvino": "import openvino.tools.ovc.main",
    "onnxruntime": "import onnxruntime",
    "huggingface_hub": "import huggingface_hub.constants as c; assert c.HF_HUB_DISABLE_TELEMETRY",
    "datasets": "import datasets; assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS; datasets.load.increase_load_count('csv')",
    "ray": "from ray._common.usage.usage_lib import usage_stats_enabled as enabled; assert not enabled()",
}
SCRIPT = """
import sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        print(event, *arguments)

sys.addaudithook(refuse)
import densefeat
"""


@pytest.mark.parametrize("package", IMPORTS)
def test_nothing_is_sent_or_stored(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    quiet = {"CI", "TF_BUILD", *_SWITCHES}  # each would silence some library by itself
    environment = {name: value for name, value in os.environ.items() if name not in quiet} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT + IMPORTS[package]]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert not list(tmp_path.rglob("*"))


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    refuse_telemetry()
    assert (os.environ["RAY_USAGE_STATS_ENABLED"], os.environ["ORT_DISABLE_TELEMETRY"]) == ("1", "1")
