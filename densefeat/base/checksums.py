"""Checksums that a file holds of its own content, so that damage is noticed when it is read.

Files without one, which earlier versions and other programs write, are read as they are.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from densefeat.errors import WeightsError

CHECKSUM = "densefeat_sha256"  # an entry of a JSON object, or of a safetensors file's metadata
_BLANK = "0" * 64  # stands in a safetensors file for its checksum while that is computed
_MAX_HEADER = 100_000_000  # bytes; safetensors refuses more


def add_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum of its content added."""
    return content | {CHECKSUM: _hash_json(content)}


def fits_checksum(content: dict[str, Any]) -> bool:
    """Check whether a JSON object is what its checksum was made of. Raises KeyError where it has none."""
    return content[CHECKSUM] == _hash_json({name: value for name, value in content.items() if name != CHECKSUM})


def check_checksum(content: Any, title: str) -> None:
    """Raise WeightsError, which begins with ``title``, for a JSON object that is not what its checksum was made of."""
    if isinstance(content, dict) and CHECKSUM in content and not fits_checksum(content):
        raise WeightsError(
            f"{title}: damaged, its content does not match its checksum: restore it from a copy;"
            f" if you changed it on purpose, remove its entry {CHECKSUM!r}"
        )


def _hash_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_tensors(save_file: Callable[..., None], tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors by ``save_file`` of safetensors (torch's or numpy's), with the SHA-256 of the file in its metadata.

    The checksum itself counts as zeros. Metadata are put in order, for safetensors writes them in random order.
    """
    save_file(tensors, path, metadata | {CHECKSUM: _BLANK})
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
        assert len(text) == length, "safetensors and json escape the same characters"
        file.seek(8)
        file.write(text)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(8)
        file.write(text.replace(_format_entry(_BLANK), _format_entry(digest)))


def _format_entry(value: str) -> bytes:
    """Format the checksum's entry as it stands in the header of a safetensors file."""
    return f'"{CHECKSUM}":"{value}"'.encode()


def check_tensors(path: Path, title: str) -> None:
    """Raise WeightsError, which begins with ``title``, for a safetensors file that is not what its checksum was made of.

    Raises OSError where it cannot be read; whether it is a safetensors file at all is left to its reader.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), _MAX_HEADER))
        recorded = re.search(_format_entry('([^"]*)'), header)
        if recorded is None:
            return
        blank = header[: recorded.start(1)] + _BLANK.encode() + header[recorded.end(1) :]
        digest = hashlib.file_digest(file, lambda: hashlib.sha256(start + blank)).hexdigest()
    if digest.encode() != recorded[1]:
        raise WeightsError(
            f"{title}: damaged, or changed by another program: its content does not match its checksum;"
            " restore it from a copy, or make it again with the command that wrote it"
        )
