"""No command contacts anything, nor leaves an id of the machine behind, unless the user names an address.

What libraries would do in native code is not seen by an audit hook: ``tests/base/test_telemetry.py`` looks for their traces.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.base.telemetry import _SWITCHES
from densefeat_cli.main import densefeat
from support.helpers import BUNDLED
from support.runs import tiny_overrides, write_classes

HOOK = """
import os, sys

def record(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # a path: between processes of this machine
    else:
        return
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        with open(os.environ["CONTACTED"], "a") as file:
            file.write(f"{event} {host} by {sys.argv}\\n")

sys.addaudithook(record)
"""
SCRIPT = """
import contextlib, io, json, sys
from densefeat_cli.main import main

results = []
for arguments in json.load(sys.stdin):
    sys.argv, output = ["densefeat", *arguments], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main()
        except SystemExit as end:
            results.append((end.code, output.getvalue()))
json.dump(results, sys.stdout)
"""
CPU = ["--device", "cpu"]
COMMANDS = [
    ["models"],
    ["recipes"],
    ["extract", "--images", "photos", "--labels", "folder", "--model", BUNDLED, "--backend", "openvino", "--out", "store", *CPU],
    ["info", "store"],
    ["verify", "store"],
    ["convert", "store", "--to", "datasets", "--out", "saved"],
    ["search", "store", "--image", "photos/class 0/000.png", "--images", "photos", "--html", "search.html", *CPU],
    ["map", "store", "--images", "photos", "--out", "map.html"],
    ["probe", "store", "--images", "photos", "--protocol", "knn", "--out", "probe"],
    ["predict", "--model", "probe", "--images", "photos", "--out", "predictions", *CPU],
    ["explain", BUNDLED, "--images", "photos", "--out", "explained", *CPU],
    ["anomaly", "fit", "--images", "photos", "--model", BUNDLED, "--false-alarms", "20%", "--out", "detector", *CPU],
    ["anomaly", "score", "--model", "detector", "--images", "photos", "--out", "anomalies", *CPU],
    ["report", "reuse", BUNDLED, "--out", "reuse.png"],
    ["report", "model", BUNDLED, "--out", "model.html"],
    ["export", BUNDLED, "--to", "safetensors", "--out", "net.safetensors"],
    ["export", "probe", "--to", "torch-export", "--out", "probe.pt2"],
    ["weights", "convert", "net.safetensors", "--model", BUNDLED, "--out", "converted.safetensors"],
    ["segment", "probe", "--images", "photos", "--masks", "masks", "--model", BUNDLED, "--protocol", "knn", "--out", "seg", *CPU],
    ["segment", "predict", "--model", "seg", "--images", "photos", "--out", "painted", *CPU],
    ["look", "photos/class 0/000.png", "--model", BUNDLED, "--picture", "look.png"],
    ["finetune", "--data", "photos", "--model", BUNDLED, "--steps", "1", "--out", "run", "workers=0", "batch_size=8", *CPU],
]  # fmt: skip
LONGER = [  # training, exports to graphs, a data set of a folder, the processes of the benchmark
    ["train", "cifar10_fast", "--out", "run", *CPU],
    ["export", BUNDLED, "--to", "onnx", "--out", "net.onnx"],
    ["export", BUNDLED, "--to", "openvino", "--out", "net.xml"],
    ["extract", "--images", "hf:tables:train", "--model", BUNDLED, "--out", "streamed", *CPU],
    ["evaluate", "run", "--data", "val.parquet", *CPU],
    ["bench", "--model", BUNDLED, "--arms", "openvino,onnxruntime", "--rounds", "1", "--steps", "1", "--device", "cpu"],
]


def run_watched(commands: list[list[str]], folder: Path) -> tuple[list[tuple[int, str]], str]:
    """Run commands in one process, with an empty home; return exit codes with outputs, and what any process contacted."""
    for name in ("hook", "home"):
        (folder / name).mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)  # which every process of Python imports
    quiet = {"CI", "TF_BUILD", "HF_HUB_OFFLINE", *_SWITCHES}  # each would silence some library by itself
    environment = {name: value for name, value in os.environ.items() if name not in quiet and not name.startswith("XDG_")}
    contacted = folder / "contacted.txt"
    contacted.touch()
    environment |= {"PYTHONPATH": str(folder / "hook"), "HOME": str(folder / "home"), "CONTACTED": str(contacted)}
    process = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(commands), env=environment, cwd=folder,
                             capture_output=True, text=True, check=True)  # fmt: skip
    return json.loads(process.stdout), contacted.read_text()


def assert_silent(commands: list[list[str]], folder: Path) -> None:
    results, contacted = run_watched(commands, folder)
    assert contacted == ""
    for command, (code, output) in zip(commands, results, strict=True):
        assert code == 0, f"{command}: {output}"
    left = {path.relative_to(folder / "home").as_posix() for path in (folder / "home").glob(".*/*")}
    assert left <= {f".{kind}/{name}" for kind in ("cache", "config") for name in ("matplotlib", "torch", "huggingface")}


def write_masks(photos: Path, masks: Path) -> None:
    """Write a mask for each image: 1 in its brighter half."""
    for path in photos.rglob("*.png"):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        (masks / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey > np.median(grey)).astype(np.uint8)).save(masks / path.relative_to(photos))


@pytest.mark.slow
def test_every_command(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", 6, classes=2, size=32)
    write_masks(tmp_path / "photos", tmp_path / "masks")
    assert_silent(COMMANDS, tmp_path)


@pytest.mark.slow
def test_commands_that_take_longer(tmp_path: Path) -> None:
    overrides = tiny_overrides(tmp_path, epochs=0.5, model=BUNDLED)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/train.parquet").write_bytes((tmp_path / "val.parquet").read_bytes())
    assert_silent([command + overrides * (command[0] == "train") for command in LONGER], tmp_path)


def test_no_command_is_forgotten() -> None:
    assert {command[0] for command in COMMANDS + LONGER} == set(densefeat.list_commands(None))


def test_the_watch_sees_what_is_contacted(tmp_path: Path) -> None:
    """Addresses that the user names: by the name of a host, and by a number that is not the usual one of this machine."""
    extract = ["extract", "--model", BUNDLED, "--out", "store", *CPU, "--images"]
    results, contacted = run_watched(
        [[*extract, "https://nowhere.invalid/a.tar"], [*extract, "http://127.0.0.2:9/a.tar"]], tmp_path
    )
    assert [code for code, _ in results] == [2, 2]
    assert {" ".join(line.split()[:2]) for line in contacted.splitlines()} == {
        "socket.getaddrinfo nowhere.invalid", "socket.connect 127.0.0.2",
    }  # fmt: skip
