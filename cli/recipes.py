"""``densefeat recipes``."""

import os
from pathlib import Path

import click


@click.group(invoke_without_command=True, epilog="Example: densefeat recipes")
@click.pass_context
def recipes(context: click.Context) -> None:
    """Table of the recipes that come with densefeat; show prints one, copy makes a file of it to change."""
    if context.invoked_subcommand is None:
        _print_table()


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    from densefeat.training import recipe_names, recipe_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what", overflow="fold")
    for name in recipe_names():
        table.add_row(name, recipe_text(name).partition("\n")[0].removeprefix("# "))
    console = Console(highlight=False, markup=False)
    console.width = console.width if console.is_terminal else 160
    console.print(table)


@recipes.command(epilog="Example: densefeat recipes show cifar10_densenet_bc100_k12")
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME as it stands in its file."""
    from densefeat.training import recipe_text

    click.echo(recipe_text(name), nl=False)


@recipes.command(epilog="Example: densefeat recipes copy cifar10_densenet_bc100_k12 mine.yaml")
@click.argument("name")
@click.argument("path", required=False, type=click.Path(path_type=Path))
def copy(name: str, path: Path | None) -> None:
    """Write the recipe NAME to PATH, which must not exist.  [default: NAME.yaml in the current folder]"""
    from densefeat.base import atomic_file
    from densefeat.errors import UsageError
    from densefeat.training import recipe_text

    text = recipe_text(name)
    path = path or Path(f"{Path(name).stem}.yaml")
    if os.path.lexists(path) and not path.is_dir():  # of a folder atomic_file says what to do
        raise UsageError(f"{str(path)!r} exists already: give another name")
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}")
