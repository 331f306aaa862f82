"""Files of text that anybody may have written, JSON, YAML and CSV: whatever is in them, a command ends with one line, and is no bug."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from datasets import Dataset

from densefeat.images.transforms import Preprocessing
from densefeat.training.run_folder import RunFolder
from support.commands import run_command
from support.probes import write_class_store
from support.runs import FAST, tiny_overrides, write_classes
from support.stores import write_store
from support.tiny_net import TINY, write_tiny_weights

CONTENTS = {
    "brackets": b"[" * 200_000 + b"]" * 200_000,
    "brackets that do not end": b"[" * 200_000,
    "objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "an object with brackets": b'{"kind": "x", "provenance": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "300 brackets": b'{"architecture": "x", "model_args": ' + b"[" * 300 + b"]" * 300 + b"}",
    "Latin-1": b'{"architecture": "caf\xe9"}\n',
    "UTF-16": '{"architecture": "x"}'.encode("utf-16"),
    "a long number": b'{"architecture": ' + b"1" * 5000 + b"}",
    "infinite": b'{"architecture": "tiny_densenet", "num_classes": Infinity, "pretrained_cfg": {"input_size": [3, Infinity, NaN]}}',
    "text": b'"text"',
    "null": b"null\n",
    "a list": b"[1, 2]\n",
    "NULs": bytes(1000),
    "nothing": b"",
}
NET = ["--device", "cpu"]
# each file, and a command that reads it; words in braces stand for what the fixture makes
FILES = {
    "run/config.json": ["predict", "--model", "run", "--images", "photos", "--out", "o", *NET],
    "run/results.json": ["report", "model", "run", "--out", "m.md"],
    "run/recipe.yaml": ["train", "{fast}", "--out", "run", *NET],
    "mine.yaml": ["train", "mine.yaml", "--out", "new", *NET],
    "store/manifest.json": ["info", "store"],
    "s.failures.jsonl": ["info", "s.parquet"],
    "store.parquet": ["info", "store.parquet"],
    "p/results.json": ["probe", "s.parquet", "--protocol", "knn", "--out", "p"],
    "o/.predictions.json": ["predict", "--model", "run", "--images", "photos", "--out", "o", *NET],
    "o/scores/manifest.json": ["predict", "--model", "run", "--images", "photos", "--out", "o", *NET],
    "r.jsonl": ["report", "reuse", "{tiny}", "--what", "prune", "--images", "val.parquet", "--out", "r.png", *NET],
    "e.json": ["evaluate", "{tiny}", "--data", "val.parquet", "--json", "e.json", *NET],
    "classes.json": ["evaluate", "{tiny}", "--data", "val.parquet", "--classes", "classes.json", *NET],
    "classes.txt": ["evaluate", "{tiny}", "--data", "val.parquet", "--classes", "classes.txt", *NET],
    "saved/dataset_info.json": ["extract", "--images", "saved", "--out", "x", "--model", "{tiny}", *NET],
    "saved/state.json": ["extract", "--images", "saved", "--out", "x", "--model", "{tiny}", *NET],
    "splits/dataset_dict.json": ["extract", "--images", "splits", "--out", "x", "--model", "{tiny}", *NET],
    "labels.csv": ["probe", "s.parquet", "--labels", "labels.csv", "--protocol", "knn", "--out", "q"],
    "list.csv": ["extract", "--images", "list.csv", "--label-column", "label", "--out", "x", "--model", "{tiny}", *NET],
    "list.txt": ["extract", "--images", "list.txt", "--out", "x", "--model", "{tiny}", *NET],
}
MAY_SUCCEED = {
    "s.failures.jsonl",
    "run/results.json",
    "run/recipe.yaml",
    "saved/dataset_info.json",
    "classes.txt",
    "labels.csv",
    "list.txt",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_classes(folder / "photos", 4, classes=2, size=32)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    torch.manual_seed(0)
    preprocessing = Preprocessing(32, 0.9, "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    run.export(timm.create_model(TINY, num_classes=2), preprocessing, ["a", "b"], "single")
    write_store(folder / "store")
    write_class_store(folder / "s.parquet", 60)
    tiny_overrides(folder)
    write_tiny_weights(folder)
    run_command("predict", "--model", "run", "--images", "photos", "--out", "o", *NET, cwd=folder, check=True)
    run_command("probe", "s.parquet", "--protocol", "knn", "--out", "p", cwd=folder, check=True)
    Dataset.from_parquet(str(folder / "val.parquet"), cache_dir=str(folder / "cache")).save_to_disk(folder / "saved")
    (folder / "splits").mkdir()
    return folder


def fill_in(command: list[str], folder: Path) -> list[str]:
    words = {"{fast}": [str(FAST), *tiny_overrides(folder)], "{tiny}": [TINY, "--weights", str(folder / "tiny.safetensors")]}
    return [word for part in command for word in words.get(part, [part])]


# PyYAML takes seconds for a thousand brackets
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(".yaml")) for name in FILES])
def test_every_content_ends_in_a_line(name: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    for content, data in CONTENTS.items():
        if name == "store.parquet":
            table = pq.read_table(folder / "s.parquet")
            pq.write_table(table.replace_schema_metadata({"densefeat": data, "huggingface": data}), folder / name)
        else:
            (folder / name).write_bytes(data)
        done = run_command(*fill_in(FILES[name], folder), cwd=folder)
        case = content, done
        assert done.exit_code in ((0, 1, 2) if name in MAY_SUCCEED else (1, 2)), case
        assert "this is a bug" not in done.stderr, case
        lines = done.stderr.splitlines()
        assert all(line.startswith("densefeat: ") or not done.exit_code for line in lines), case
        assert max(map(len, lines), default=0) < 2100, case
        for path in ("x", "q", "new"):
            shutil.rmtree(folder / path, ignore_errors=True)


def test_the_contents_are_read_by_json_as_they_say() -> None:
    """Some of them pass Python's reader, and have to be refused for what follows."""
    passing = []
    for content, data in CONTENTS.items():
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            continue
        passing.append(content)
    assert passing == ["300 brackets", "UTF-16", "infinite", "text", "null", "a list"]
