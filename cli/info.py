"""``densefeat info``."""

import json
from pathlib import Path
from typing import Any

import click

from densefeat import store as stores
from densefeat_cli.options import epilog, store_argument
from densefeat_cli.output import DataOutput, format_bytes, print_facts, print_table


@click.command(epilog=epilog("info embeddings/"))
@store_argument
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
def info_command(store: Path, style: str) -> None:
    """Show rows, failures, blocks, sizes and provenance of a STORE, a folder or a single file, finished or not."""
    summary = stores.describe_store(store)
    if style == "json":
        DataOutput().write(json.dumps(summary, indent=1) + "\n")
        return
    print_facts([*_count_facts(summary), *_flatten(summary["provenance"])])
    if summary["vectors"]:
        rows = [
            [name, "×".join(map(str, vector["shape"])), vector["dtype"], format_bytes(vector["memory_bytes"])]
            for name, vector in summary["vectors"].items()
        ]
        print_table(["vectors", "shape", "dtype", "in memory"], rows)


def _count_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    parts = f"folder, parts: {summary['parts']}" if summary["kind"] == "folder" else "single file"
    lines = [("store", f"{summary['path']} ({parts})")]
    if not summary["complete"]:
        total = "" if summary["total"] is None else f" of {summary['total']:,}"
        lines.append(("unfinished", f"{summary['done']:,}{total} done; the same densefeat extract command resumes there"))
    lines.append(("rows", f"{summary['rows']:,}"))
    failures = summary["failures"]
    stages = ", ".join(f"{stage} {count:,}" for stage, count in failures["by_stage"].items())
    lines.append(("failures", f"{failures['count']:,}" + (f" ({stages})" if stages else "")))
    for failure in failures["first"]:
        place = "" if failure["page"] is None else f" page {failure['page']}"
        place += "" if failure["x"] is None else f" at {failure['x']}, {failure['y']}"
        lines.append(("", f"{failure['path']}{place}: {failure['stage']}: {failure['reason']}"))
    if failures["count"] > len(failures["first"]):
        lines.append(("", f"and {failures['count'] - len(failures['first']):,} more"))
    if summary["skipped"]:
        lines.append(("skipped", f"{summary['skipped']:,} tiles without enough content"))
    if summary["removed"]:
        lines.append(("removed", f"{summary['removed']:,} images with rows here are no longer in the input"))
    lines.append(("columns", ", ".join(summary["columns"])))
    lines.append(
        (
            "size",
            f"{format_bytes(summary['disk_bytes'])} on disk, {format_bytes(summary['memory_bytes'])} of vectors in memory",
        )
    )
    return lines


def _flatten(provenance: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a fact for each value, without shapes and format, which other lines show, and without what is not set."""
    lines = []
    for name, value in provenance.items():
        if isinstance(value, dict) and name != "shapes":
            lines += _flatten(value, f"{prefix}{name} ")
        elif value is not None and name not in ("shapes", "format_version"):
            lines.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines
