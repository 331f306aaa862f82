"""Figures to files, the same bytes for the same figure."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from densefeat.errors import UsageError
from densefeat.store.atomic import atomic_file

SUFFIXES = (".png", ".svg")


def check_picture(path: Path) -> None:
    """UsageError unless the name ends in .png or .svg."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"picture {str(path)!r}: its name must end in {' or '.join(SUFFIXES)}")


def save_picture(figure: Figure, path: Path) -> None:
    """PNG or SVG by the suffix, whole or not at all. UsageError for another one, OutputError where it cannot be written."""
    check_picture(path)
    content = svg_bytes(figure) if path.suffix.lower() == ".svg" else png_bytes(figure)
    with atomic_file(path) as beside:
        beside.write_bytes(content)


def png_bytes(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "densefeat"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
