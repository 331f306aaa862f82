"""Commands that need neither torch nor timm answer without them, and so does every message about wrong use."""

import json
import shlex
import subprocess
import sys

import pytest

from densefeat_cli.main import densefeat
from support.commands import run_command
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
HELP = [[], *([name] for name in COMMANDS), ["recipes", "show"], ["recipes", "copy"], ["report", "reuse"], ["report", "model"]]
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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Exit code, output and errors of each command, run where torch and timm cannot be imported."""
    folder = tmp_path_factory.mktemp("startup")
    write_store(folder / "store")
    commands = [*([*command, "--help"] for command in HELP), *ANSWERS, *(command for command, _ in WRONG_USE)]
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


@pytest.mark.parametrize(("command", "message"), WRONG_USE, ids=[" ".join(command) for command, _ in WRONG_USE])
def test_wrong_use(command: list[str], message: str, results: dict[tuple[str, ...], tuple[int, str, str]]) -> None:
    code, output, errors = results[tuple(command)]
    assert (code, output) == (2, "")
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
