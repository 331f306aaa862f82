"""Figures to files, the same bytes for the same figure."""

import io
import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from densefeat.base.files import atomic_file
from densefeat.errors import UsageError

_METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}  # without what changes from call to call


def check_picture(path: Path) -> None:
    """UsageError unless the name ends in .png or .svg."""
    if path.suffix.lower() not in _METADATA:
        raise UsageError(f"picture {str(path)!r}: its name must end in {' or '.join(_METADATA)}")


def save_picture(figure: Figure, path: Path) -> bytes:
    """PNG or SVG by the suffix, whole or not at all; returns the file's content.

    UsageError for another suffix, OutputError where it cannot be written.
    """
    check_picture(path)
    content = picture_bytes(figure, path.suffix.lower())
    with atomic_file(path) as beside:
        beside.write_bytes(content)
    return content


def picture_bytes(figure: Figure, suffix: str) -> bytes:
    """``suffix``: .png or .svg."""
    drawn = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "densefeat"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of names in scripts that the font has not
        figure.savefig(drawn, format=suffix[1:], dpi=120, metadata=_METADATA[suffix])
    return drawn.getvalue()
