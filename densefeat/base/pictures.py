"""Figures and images saved as files: the same bytes for the same content."""

import io
import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from densefeat.base.files import atomic_file
from densefeat.base.ownership import MARK, Recognizer, is_picture
from densefeat.errors import UsageError

_METADATA = {  # the mark by which a picture is recognized; without a date, which changes with each call
    ".png": {"Software": MARK},
    ".svg": {"Date": None, "Creator": MARK},
}
_QUICK = 1  # of zlib: a quarter of the time, and of photographs 10 % more bytes


def check_picture(path: Path) -> None:
    """Raise UsageError unless the name ends in .png or .svg."""
    if path.suffix.lower() not in _METADATA:
        raise UsageError(f"picture {str(path)!r}: its name must end in {' or '.join(_METADATA)}")


def save_picture(figure: Figure, path: Path, is_ours: Recognizer | None = is_picture) -> bytes:
    """Save as PNG or SVG, by the suffix, whole or not at all; return the file's content.

    It replaces only another picture of densefeat. ``is_ours``: as in :func:`densefeat.base.files.atomic_file`.
    Raises UsageError for another suffix and where something else has the file's name, OutputError where it cannot be written.
    """
    check_picture(path)
    content = render_picture(figure, path.suffix.lower())
    with atomic_file(path, is_ours) as beside:
        beside.write_bytes(content)
    return content


def save_png(image: Image.Image, path: Path, is_ours: Recognizer | None = is_picture) -> None:
    """Save an image as PNG, whole or not at all. ``is_ours`` and errors: as of :func:`save_picture`."""
    info = PngInfo()
    info.add_text("Software", MARK)
    with atomic_file(path, is_ours) as beside:
        image.save(beside, "PNG", pnginfo=info, compress_level=_QUICK)


def render_picture(figure: Figure, suffix: str) -> bytes:
    """Return the content of a file with the suffix ``.png`` or ``.svg``."""
    content = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "densefeat"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font lacks some scripts that names are written in
        figure.savefig(content, format=suffix[1:], dpi=120, metadata=_METADATA[suffix])
    return content.getvalue()
