"""``densefeat recipes``: the table, one recipe, a copy of it to change."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from densefeat.training.recipe_files import load_recipe, recipe_names, recipe_text
from support.commands import Finished, run_command

NAME = "cifar10_densenet_bc100_k12"


@pytest.fixture
def recipes(folder: Path) -> Callable[..., Finished]:
    """Run the command in an empty folder."""
    return partial(run_command, "recipes")


def test_table(recipes) -> None:
    code, out, err = recipes()
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["name", "what"]
    listed = dict(row.split(maxsplit=1) for row in rows)
    assert list(listed) == recipe_names()
    assert len(listed) >= 25
    assert listed[NAME].rstrip() == "DenseNet-BC (L=100, k=12) on CIFAR-10 and CIFAR-100: the paper's protocol."


def test_show(recipes) -> None:
    assert recipes("show", NAME) == (0, recipe_text(NAME), "")


def test_show_takes_a_path(recipes) -> None:
    Path("mine.yaml").write_text("lr: 1\n")
    assert recipes("show", "mine.yaml") == (0, "lr: 1\n", "")


@pytest.mark.parametrize(
    ("arguments", "target"), [([], f"{NAME}.yaml"), (["mine.yaml"], "mine.yaml"), (["a/b.yaml"], "a/b.yaml")]
)
def test_copy(recipes, arguments: list[str], target: str) -> None:
    Path("a").mkdir()
    assert recipes("copy", NAME, *arguments) == (0, f"wrote {target}\n", "")
    assert Path(target).read_text(encoding="utf-8") == recipe_text(NAME)
    assert load_recipe(target) == load_recipe(NAME)
    assert sorted(os.listdir()) == sorted({"a", target.split("/")[0]})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show"], 2, "Missing argument 'NAME'."),
        (["show", "cifar10_fas"], 2, "unknown recipe 'cifar10_fas': did you mean cifar10_fast, "),
        (["show", "nowhere.yaml"], 2, "recipe 'nowhere.yaml': No such file"),
        (["copy", "%%%"], 2, "unknown recipe '%%%': see: densefeat recipes"),
        (["copy", NAME, "there.yaml"], 2, "'there.yaml' exists already: give another name"),
        (["copy", NAME, "broken.yaml"], 2, "'broken.yaml' exists already: give another name"),
        (["copy", "there.yaml"], 2, "'there.yaml' exists already: give another name"),
        (["copy", NAME, "folder"], 1, "output 'folder' is a folder: give a file name"),
        (["copy", NAME, "no/mine.yaml"], 1, "output 'no/mine.yaml' cannot be written: No such file"),
        (["frobnicate"], 2, "No such command 'frobnicate'."),
    ],
)
def test_errors(recipes, arguments: list[str], code: int, message: str) -> None:
    Path("there.yaml").write_text("mine")
    Path("broken.yaml").symlink_to("nowhere")
    Path("folder").mkdir()
    ended, out, err = recipes(*arguments)
    assert (ended, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith(f"densefeat: {message}")
    assert sorted(os.listdir()) == ["broken.yaml", "folder", "there.yaml"]
    assert Path("there.yaml").read_text() == "mine"
    assert not Path("broken.yaml").exists()


@pytest.mark.parametrize("command", [[], ["show"], ["copy"]])
def test_every_help_ends_with_an_example(recipes, command: list[str]) -> None:
    code, out, _ = recipes(*command, "--help")
    assert code == 0
    assert out.splitlines()[-1].strip().startswith(" ".join(["Example: densefeat recipes", *command]))
