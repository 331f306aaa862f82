"""Commands that need neither torch nor timm answer without them, and so does every message about wrong use."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from densefeat.store import open_store
from densefeat_cli.main import densefeat
from support.commands import run_command
from support.helpers import BUNDLED
from support.stores import write_store

# one process for all commands: whatever one of them imports, the blocked packages stay out
SCRIPT = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "timm"):
            raise RuntimeError(f"{name} is imported")

sys.meta_path.insert(0, Blocker())
from densefeat_cli.main import main

results = []
for arguments in json.load(sys.stdin):
    sys.argv = ["densefeat", *arguments]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append((code, output.getvalue(), errors.getvalue()))
json.dump(results, sys.stdout)
"""
COMMANDS = list(densefeat.list_commands(None))
HELP = [[], *([name] for name in COMMANDS), ["recipes", "show"], ["recipes", "copy"], ["report", "reuse"], ["report", "model"],
        ["segment", "probe"], ["segment", "predict"]]  # fmt: skip
ANSWERS = [
    ["info", "store"],
    ["info", "store", "--format", "json"],
    ["recipes"],
    ["recipes", "show", "cifar10_fast"],
    ["convert", "store", "--to", "npy", "--out", "arrays"],
    ["search", "store", "--key", 'é/01, "1".jpg'],
    ["search", "store", "--all-pairs", "--threshold", "0.5"],
    ["--version"],
]
WRONG_USE = [
    (["frobnicate"], "No such command 'frobnicate'"),
    (["bench", "--batch", "0"], "Invalid value for '--batch'"),
    (["convert", "store", "--to", "npy", "--out", "a", "--columns", "block9"], "store has no vectors 'block9'"),
    (["convert", "nowhere", "--to", "npy", "--out", "a"], "store 'nowhere': no such file or folder"),
    (["evaluate", "densefeat_densenet121"], "Missing option '--data'"),
    (["evaluate", "densefeat_densenet121", "--data", "nowhere"], "images 'nowhere': no such folder or file"),
    (["export", "densefeat_densenet121", "--to", "gguf", "--out", "a"], "Invalid value for '--to'"),
    (["extract", "--images", "nowhere", "--out", "e"], "images 'nowhere': no such folder or file"),
    (["extract", "--images", "nowhere.csv", "--out", "e"], "images 'nowhere.csv': no such file"),
    (["extract", "--images", "shards-{000..009}.tar", "--out", "e"], "images 'shards-{000..009}.tar': no such file"),
    (["extract", "--images", "a.tar.gz", "--out", "e"], "images 'a.tar.gz': a compressed tar file"),
    (["extract", "--images", "", "--out", "e"], "images '': the name of the input is empty"),
    (["bench", "--arms", "quick,warp"], "arm 'warp': on cpu or cuda choose quick, ours, all, or some of timm-nchw"),
    (["bench", "--device", "cpu", "--arms", "triton"], "arm 'triton': on cpu choose quick"),
    (["export", "net", "--to", "onnx", "--out", "a.pt"], "output 'a.pt': give a name that ends in .onnx"),
    (["export", "net", "--to", "safetensors", "--out", "taken.safetensors"], "output 'taken.safetensors' exists"),
    (["export", "net", "--to", "onnx", "--out", "none/a.onnx"], "there is no folder 'none': make it first"),
    (["export", "runs/none", "--to", "onnx", "--out", "a.onnx"], "model 'runs/none': no such folder"),
    (["extract", "--images", "photos", "--out", "e", "--batch-size", "0"], "batch size 0: give at least 1"),
    (["extract", "--images", "photos", "--out", "e", "--max-failures", "x"], "max failures 'x': give a number"),
    (["extract", "--images", "photos", "--out", "e", "--overwrite", "--update"], "--overwrite starts over, --update adds"),
    (["extract", "--images", "photos", "--out", "e.parquet", "--update"], "output 'e.parquet' is a single file"),
    (["extract", "--images", "photos", "--out", "e", "--model", "runs/none"], "model 'runs/none': no such folder"),
    (["predict", "--model", "runs/none", "--images", "photos", "--out", "p"], "model 'runs/none': no such folder"),
    (["finetune", "--data", "nowhere", "--out", "run"], "images 'nowhere': no such folder or file"),
    (["finetune", "--data", "store", "--out", "run", "leaning_rate=1"], "unknown key 'leaning_rate'"),
    (["info", "nowhere"], "store 'nowhere': no such file or folder"),
    (["map", "nowhere", "--out", "m.html"], "store 'nowhere': no such file or folder"),
    (["predict", "--model", "m", "--images", "nowhere", "--out", "p"], "images 'nowhere': no such folder or file"),
    (["probe", "--out", "p"], "give a STORE of densefeat extract, or --images"),
    (["probe", "nowhere", "--out", "p"], "store 'nowhere': no such file or folder"),
    (["probe", "--images", "nowhere", "--out", "p"], "images 'nowhere': no such folder or file"),
    (["recipes", "show", "cifar10_fats"], "unknown recipe 'cifar10_fats': did you mean cifar10_fast"),
    (["report", "reuse", "m", "--out", "r.gif"], "picture 'r.gif': its name must end in .png or .svg"),
    (["report", "reuse", "m", "--out", "r.png", "--what", "prune"], "--what prune needs labelled --images"),
    (["report", "model", "m", "--out", "r.pdf"], "page 'r.pdf': its name must end in .html or .md"),
    (["search", "store"], "search for --image or --key, or for --all-pairs"),
    (["search", "store", "--key", "1.jpg"], "key '1.jpg' is not in store"),
    (["search", "store", "--key", 'é/01, "1".jpg', "--block", "9"], "has no block 9"),
    (["train", "cifar10_fats"], "unknown recipe 'cifar10_fats': did you mean cifar10_fast"),
    (["train", "cifar10_fast", "epoch=3"], "unknown key 'epoch': did you mean 'epochs'?"),
    (["train", "cifar10_fast", "lr=fast"], "lr 'fast'"),
]  # fmt: skip


ADDRESSES = ["s3://bucket/x", "memory://x", "file:///tmp/x", "gs://bucket/x.parquet"]
NOT_UTF8 = os.fsdecode(b"caf\xe9")
OUTPUTS = [  # of every command that writes
    ["bench", "--out"],
    ["convert", "store", "--to", "npy", "--out"],
    ["evaluate", "net", "--data", "photos", "--json"],
    ["explain", "net", "--images", "photos", "--out"],
    ["export", "net", "--to", "hub-folder", "--out"],
    ["extract", "--images", "photos", "--out"],
    ["finetune", "--data", "photos", "--out"],
    ["map", "store", "--out"],
    ["predict", "--model", "net", "--images", "photos", "--out"],
    ["probe", "store", "--out"],
    ["recipes", "copy", "cifar10_fast"],
    ["report", "reuse", "net", "--out"],
    ["report", "model", "net", "--out"],
    ["search", "store", "--key", "k", "--html"],
    ["train", "cifar10_fast", "--out"],
]
WRONG_USE += [([*command, name], f"output {name!r} is an address: give a path on this machine")
              for command in OUTPUTS for name in (ADDRESSES if command[0] == "extract" else ADDRESSES[:1])]  # fmt: skip
WRONG_USE += [([*command, NOT_UTF8], f"output {NOT_UTF8!r}: its name is not UTF-8") for command in OUTPUTS]
WRONG_USE += [(["extract", "--images", "photos", "--out", "long/" + 300 * "n"], "a name of 300 bytes: at most 255")]
WRONG_USE += [(command, f"path {NOT_UTF8!r}: its name is not UTF-8") for command in (
    ["info", NOT_UTF8],
    ["extract", "--images", "photos", "--out", "e", "--weights", NOT_UTF8],
)]  # fmt: skip
# wrong in a way that is not the user's mistake on the command line: exit code 1
REFUSED = [
    (["extract", "--images", "photos", "--out", "photos"], "output 'photos' is no store of densefeat and not empty (1.jpg)"),
    (["extract", "--images", "photos", "--out", "photos/1.jpg"], "output 'photos/1.jpg' is a file: give a folder"),
    (["extract", "--images", "photos", "--out", "none/e.parquet"], "output 'none/e.parquet' cannot be written"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Exit code, output and errors of each command, run where torch and timm cannot be imported."""
    folder = tmp_path_factory.mktemp("startup")
    write_store(folder / "store")
    (folder / "photos").mkdir()
    for file in ("photos/1.jpg", "taken.safetensors"):
        (folder / file).write_bytes(b"")
    wrong = (command for command, _ in WRONG_USE + REFUSED)
    commands = [*([*command, "--help"] for command in HELP), *ANSWERS, *wrong]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(commands), cwd=folder, capture_output=True, text=True, check=True
    )
    return {tuple(command): tuple(result) for command, result in zip(commands, json.loads(process.stdout), strict=True)}


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_ends_with_an_example(command: list[str], results: dict[tuple[str, ...], tuple[int, str, str]]) -> None:
    code, output, errors = results[*command, "--help"]
    assert (code, errors) == (0, "")
    paragraph = output.split("\n\n")[-1]
    assert paragraph.strip().startswith(" ".join(["Example: densefeat", *command]))


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
def test_answers(command: list[str], results: dict[tuple[str, ...], tuple[int, str, str]]) -> None:
    code, output, errors = results[tuple(command)]
    assert (code, errors) == (0, "")
    assert output


@pytest.mark.parametrize(
    ("command", "message", "expected_code"),
    [(*case, 2) for case in WRONG_USE] + [(*case, 1) for case in REFUSED],
    ids=[ascii(" ".join(command)) for command, _ in WRONG_USE + REFUSED],
)
def test_wrong_use(
    command: list[str], message: str, expected_code: int, results: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, output, errors = results[tuple(command)]
    assert (code, output) == (expected_code, "")
    (line,) = errors.splitlines()
    assert line.startswith("densefeat: ")
    assert message in line


def test_examples_of_the_help_have_right_options() -> None:
    """Every example parses: with ``--help`` at its end it prints the help of the command, not an error."""
    for command in HELP:
        text = " ".join(run_command(*command, "--help").stdout.split())
        for example in text.rpartition("Example: densefeat ")[2].split(", or: densefeat "):
            assert run_command(*shlex.split(example), "--help").exit_code == 0, example


def test_help_imports_little() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; import densefeat_cli.main as m\ntry: m.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(process.stdout.splitlines()[-1].split())
    assert "click" in modules
    assert not {"torch", "timm", "numpy", "rich", "pyarrow"} & modules


@pytest.mark.slow
def test_extract_imports_no_more_than_it_uses(photo_folder: Path, tmp_path: Path) -> None:
    """What torch, timm, torchvision and pyarrow import themselves (the last pandas, if it is there) is theirs."""
    code = "import sys; import densefeat_cli.main as m\ntry: m.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    arguments = ["extract", "--images", photo_folder, "--out", tmp_path / "rows", "--model", BUNDLED, "--backend", "buffer"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    modules = set(process.stdout.splitlines()[-1].split())
    assert {"torch", "timm", "pyarrow.parquet", "densefeat.store.writer"} <= modules
    assert len(open_store(tmp_path / "rows"))
    unused = {"scipy", "sklearn", "matplotlib", "datasets", "openvino", "nncf", "ray", "faiss", "pyarrow.dataset"}
    assert not unused & modules
