"""``densefeat info``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat.base import printable

if TYPE_CHECKING:
    from rich.table import Table


@click.command(epilog="Example: densefeat info embeddings/")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
def info(store: Path, style: str) -> None:
    """Rows, failures, blocks, sizes and provenance of a store, a folder or a single file; of an unfinished one what is done."""
    from densefeat.store import describe_store

    found = describe_store(store)
    if style == "json":
        click.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 160
    console.print(_summary(found))
    if found["vectors"]:
        console.print(_vectors(found))


def _summary(found: dict[str, Any]) -> "Table":
    """Names and values, as plain text: what a store says is no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in [*_counts(found), *_flattened(found["provenance"])]:
        table.add_row(Text(printable(name)), Text(printable(value)))
    return table


def _counts(found: dict[str, Any]) -> list[tuple[str, str]]:
    parts = f"folder, parts: {found['parts']}" if found["kind"] == "folder" else "single file"
    lines = [("store", f"{found['path']} ({parts})")]
    if not found["complete"]:
        of = "" if found["total"] is None else f" of {found['total']:,}"
        lines.append(("unfinished", f"{found['done']:,}{of} done; the same densefeat extract goes on from there"))
    lines.append(("rows", f"{found['rows']:,}"))
    failures = found["failures"]
    stages = ", ".join(f"{stage} {count:,}" for stage, count in failures["by_stage"].items())
    lines.append(("failures", f"{failures['count']:,}" + (f" ({stages})" if stages else "")))
    for failure in failures["first"]:
        place = "" if failure["x"] is None else f" at {failure['x']}, {failure['y']}"
        lines.append(("", f"{failure['path']}{place}: {failure['stage']}: {failure['reason']}"))
    if failures["count"] > len(failures["first"]):
        lines.append(("", f"and {failures['count'] - len(failures['first']):,} more"))
    if found["skipped"]:
        lines.append(("skipped", f"{found['skipped']:,} tiles without enough content"))
    if found["removed"]:
        lines.append(("removed", f"{found['removed']:,} images with rows here are no longer in the input"))
    lines.append(("columns", ", ".join(found["columns"])))
    lines.append(("size", f"{_size(found['disk_bytes'])} on disk, {_size(found['memory_bytes'])} of vectors in memory"))
    return lines


def _flattened(provenance: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A line for each value; what the other lines say (shapes, format) and what is not set is left out."""
    lines = []
    for name, value in provenance.items():
        if isinstance(value, dict) and name != "shapes":
            lines += _flattened(value, f"{prefix}{name} ")
        elif value is not None and name not in ("shapes", "format_version"):
            lines.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def _vectors(found: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("vectors", "shape", "dtype", "in memory"):
        table.add_column(column)
    for name, vector in found["vectors"].items():
        shape = "×".join(map(str, vector["shape"]))
        table.add_row(Text(printable(name)), shape, vector["dtype"], _size(vector["memory_bytes"]))
    return table


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:,.1f} {unit}"
