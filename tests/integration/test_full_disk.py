"""Every command that writes, on a real disk that is full: one line that names the file, and no half of an output."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import run_command
from support.probes import write_class_store
from support.runs import FAST, tiny_overrides, write_classes
from support.tiny_net import TINY, write_tiny_weights

OWN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # in which this user may mount disks
FULL = re.compile(r"densefeat: output '([^']+)' cannot be written: No space left on device")
# words in braces stand for what the test makes
COMMANDS = {  # and the files that a command without enough room must not leave, for they appear whole or not at all
    "extract --images {photos} --out e {net}": ["e/failures.parquet"],
    "extract --images {photos} --out e.parquet {net}": ["e.parquet"],
    "probe {store} --protocol knn --out p": ["p/results.json"],
    "probe --images {photos} --protocol sgd --epochs 1 --workers 0 --out p {net}": ["p/results.json"],
    "probe --images {photos} --protocol attentive --epochs 1 --workers 0 --out p {net}": ["p/results.json"],
    "predict --model {probe} --images {photos} --out o --device cpu": ["o/predictions.csv"],
    "map {store} --out m.html": ["m.html"],
    "search {store} --key 0.jpg --html s.html": ["s.html"],
    "report reuse {model} --out r.png": ["r.png"],
    "report reuse {model} --out r.svg --what prune --limit 20 --images {val} --device cpu": ["r.svg"],
    "report model {model} --out m.html": ["m.html"],
    "evaluate {model} --data {val} --json e.json --device cpu": ["e.json"],
    "recipes copy cifar10_fast c.yaml": ["c.yaml"],
    "convert {store} --to csv --out c.csv": ["c.csv", "c.provenance.json"],
    "convert {store} --to npz --out c.npz": ["c.npz"],
    "convert {store} --to npy --out c": ["c/rows.parquet"],
    "convert {store} --to safetensors --out c.safetensors": ["c.safetensors"],
    "convert {store} --to datasets --out c": ["c/state.json"],
    "export {model} --to safetensors --out x.safetensors": ["x.safetensors"],
    "export {model} --to hub-folder --out x": ["x/model.safetensors"],
    "export {model} --to openvino --out x.xml": ["x.xml", "x.bin"],
    "export {model} --to torch-export --out x.pt2": ["x.pt2"],
    "train {recipe} --out run --device cpu": ["run/results.json"],
    "finetune --data {photos} --out run --model {model} --device cpu epochs=1 batch_size=8 workers=0": ["run/results.json"],
}


@pytest.mark.slow
def test_every_command_on_full_disks(tmp_path: Path) -> None:
    mount = [*OWN_NAMESPACE, "mount", "-t", "tmpfs", "none", tmp_path]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk here")
    write_classes(tmp_path / "photos", 12, classes=2, size=32)
    store = write_class_store(tmp_path / "store.parquet", 60)
    weights = ["--weights", str(write_tiny_weights(tmp_path))]
    words = {
        "{photos}": [str(tmp_path / "photos")],
        "{store}": [str(store)],
        "{net}": ["--model", TINY, *weights, "--device", "cpu"],
        "{model}": [TINY, *weights],
        "{recipe}": [str(FAST), *tiny_overrides(tmp_path)],
        "{val}": [str(tmp_path / "val.parquet")],
        "{probe}": [str(tmp_path / "probe")],
    }
    run_command(
        "probe", "--images", *words["{photos}"], "--protocol", "knn", "--out", *words["{probe}"], *words["{net}"], check=True
    )
    commands = [[word for part in name.split() for word in words.get(part, [part])] for name in COMMANDS]
    process = [*OWN_NAMESPACE, sys.executable, "-m", "support.small_disks", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(process, input=json.dumps(commands), text=True, env=environment, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, command in zip(COMMANDS, commands, strict=True):
        *full, last = [result for result in results if result["command"] == command]
        assert last["code"] == 0, (name, last["errors"])
        assert full, name
        for result in full:
            case = name, result["kib"], result["errors"]
            *notes, line = result["errors"].splitlines()
            assert result["code"] == 1, case
            assert FULL.fullmatch(line), case
            assert not any("Traceback" in note or "No space" in note for note in notes), case
            assert not set(COMMANDS[name]) & set(result["files"]), (*case, result["files"])
            assert not [file for file in result["files"] if file.endswith(".partial")], (*case, result["files"])
