"""Matplotlib figures saved as files: the same bytes for the same figure."""

import io
import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from densefeat.base.files import atomic_file
from densefeat.errors import UsageError

_METADATA = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}  # fields that change with each call


def check_picture(path: Path) -> None:
    """Raise UsageError unless the name ends in .png or .svg."""
    if path.suffix.lower() not in _METADATA:
        raise UsageError(f"picture {str(path)!r}: its name must end in {' or '.join(_METADATA)}")


def save_picture(figure: Figure, path: Path) -> bytes:
    """Save as PNG or SVG, by the suffix, whole or not at all; return the file's content.

    Raises UsageError for another suffix, OutputError where the file cannot be written.
    """
    check_picture(path)
    content = render_picture(figure, path.suffix.lower())
    with atomic_file(path) as beside:
        beside.write_bytes(content)
    return content


def render_picture(figure: Figure, suffix: str) -> bytes:
    """Return the content of a file with the suffix ``.png`` or ``.svg``."""
    content = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "densefeat"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font lacks some scripts that names are written in
        figure.savefig(content, format=suffix[1:], dpi=120, metadata=_METADATA[suffix])
    return content.getvalue()
