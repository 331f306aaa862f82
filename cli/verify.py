"""``densefeat verify``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from densefeat import store as stores
from densefeat_cli.options import epilog, store_argument
from densefeat_cli.output import format_bytes, print_line

if TYPE_CHECKING:
    from densefeat.store import Damage


@click.command(epilog=epilog("verify embeddings/"))
@store_argument
def verify_command(store: Path) -> None:
    """Compare every file of a STORE, a folder or a single file, with its checksums, and say which rows are lost.

    Exits with 1 where there is damage. The densefeat extract that made the store then extracts the damaged parts again.
    """
    found = stores.verify_store(store)
    for damage in found.damages:
        print_line(damage.problem + _describe_rows(damage))
    if found.damages:
        lost = sum(damage.rows for damage in found.damages)
        rows = f", with {lost:,} of {found.rows:,} rows" if found.rows else ""
        raise click.ClickException(
            f"{store}: damaged files: {len(found.damages):,}{rows}: the densefeat extract that made the store makes them again"
        )
    old = f"; {found.unchecked:,} of an earlier version without checksums, which can be decoded" if found.unchecked else ""
    print_line(f"{store}: {found.parts:,} parts, {found.rows:,} rows, {format_bytes(found.bytes)}: no damage{old}")


def _describe_rows(damage: "Damage") -> str:
    if not damage.rows:
        return ""
    keys = f", {damage.keys[0]} to {damage.keys[1]}" if damage.keys else ""
    return f": rows {damage.first_row:,} to {damage.first_row + damage.rows - 1:,}{keys}"
