"""``densefeat recipes``."""

import os
from pathlib import Path

import click

from densefeat import base, training
from densefeat.errors import UsageError
from densefeat_cli.options import OUTPUT_TYPE, epilog
from densefeat_cli.output import DataOutput, print_line, print_table


@click.group(invoke_without_command=True, epilog=epilog("recipes"))
@click.pass_context
def recipes_command(context: click.Context) -> None:
    """List the recipes that come with densefeat; show prints one, copy makes a file of it to change."""
    if context.invoked_subcommand is None:
        rows = [[name, training.recipe_text(name).partition("\n")[0].removeprefix("# ")] for name in training.recipe_names()]
        print_table(["name", "what"], rows, whole=["name"])


@recipes_command.command(epilog=epilog("recipes show cifar10_densenet_bc100_k12"))
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME, comments included."""
    DataOutput().write(training.recipe_text(name))


@recipes_command.command(epilog=epilog("recipes copy cifar10_densenet_bc100_k12 mine.yaml"))
@click.argument("name")
@click.argument("path", required=False, type=OUTPUT_TYPE)
def copy(name: str, path: Path | None) -> None:
    """Write the recipe NAME to PATH, which must not exist.  [default: NAME.yaml in the current folder]"""
    text = training.recipe_text(name)
    path = path or Path(f"{Path(name).stem}.yaml")
    if os.path.lexists(path) and not path.is_dir():  # atomic_file has a better message for a folder
        raise UsageError(f"{str(path)!r} exists already: give another name")
    with base.atomic_file(path, base.recognize_none) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print_line(f"wrote {path}")
