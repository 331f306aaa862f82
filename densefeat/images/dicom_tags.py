"""Elements of a DICOM's header that the user names, as text: the only ones beside those of its pixels that are ever read."""

import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

from densefeat.base import shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images.dicom_header import (
    HEAD_BYTES,
    MAX_TEXT_BYTES,
    PIXELS,
    check_pydicom,
    hide_values,
    is_dicom,
    read_elements,
)
from densefeat.images.guards import decode_errors
from densefeat.images.memory import MEMORY

_SPECIFIC_CHARACTER_SET = 0x00080005
_BINARY = ("SQ", "OB", "OD", "OF", "OL", "OV", "OW", "OB or OW", "UN")
_MAX_TEXT = 1000  # characters, and values, of an element


def read_tags(data: bytes, names: Sequence[str]) -> dict[str, str | None]:
    """Read elements of a DICOM that the user names: by keyword (``PatientSex``), or eight hexadecimal digits (``00100040``).

    Several values are joined by ``\\``; None where there is no value, and in a file that is no DICOM. Raises UsageError for a
    name that does not exist, and for sequences and binary data; DecodeError for a damaged file.
    """
    tags = _find_tags(names)
    with decode_errors(), MEMORY.hold(), hide_values():
        if not is_dicom(data[:HEAD_BYTES]):
            return dict.fromkeys(names)
        elements = read_elements(io.BytesIO(data), [*tags.values(), _SPECIFIC_CHARACTER_SET])[3]
        return {name: _format_value(elements, tag) for name, tag in tags.items()}


def split_tags(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Split names at commas. Raises UsageError as :func:`read_tags` does, and for a name that is there twice."""
    if names is None:
        return ()
    split = tuple(name.strip() for name in (names.split(",") if isinstance(names, str) else names))
    if len(_find_tags(split)) < len(split):
        raise UsageError(f"DICOM tags {','.join(split)}: one of them is named twice")
    return split


def _find_tags(names: Sequence[str]) -> dict[str, int]:
    """Find the numbers of elements by name. Raises UsageError as :func:`read_tags` does."""
    check_pydicom()
    from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

    found = {}
    for name in names:
        tag = int(name, 16) if re.fullmatch("[0-9a-fA-F]{8}", name) else tag_for_keyword(name) if name else None
        if tag is None:
            close = difflib.get_close_matches(name, keyword_dict, 1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise UsageError(
                f"DICOM tag {shorten_text(repr(name))}: give a keyword such as PatientSex, or 8 hexadecimal digits{hint}"
            )
        if tag in PIXELS or _is_binary(dictionary_VR, tag):
            raise UsageError(f"DICOM tag {name}: a sequence or binary data is no value for a column")
        found[name] = tag
    return found


def _is_binary(dictionary_vr: Any, tag: int) -> bool:
    try:
        return dictionary_vr(tag) in _BINARY
    except KeyError:
        return False


def _format_value(elements: Any, tag: int) -> str | None:
    raw = elements.get_item(tag).value if tag in elements else b""
    if isinstance(raw, bytes) and len(raw) > MAX_TEXT_BYTES:
        raise DecodeError(f"{len(raw):,} bytes of DICOM tag {tag:08x} are no value for a column")
    value = elements[tag].value if tag in elements else None
    if value is None or isinstance(value, bytes) or type(value).__name__ == "Sequence":
        return None
    parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    text = "\\".join(map(str, parts[:_MAX_TEXT]))[:_MAX_TEXT].strip().rstrip("\0")
    return text or None
