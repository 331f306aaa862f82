"""Checkpoints: whole or not there, told from damaged ones by their own hash."""

import hashlib
import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from densefeat.base import atomic_file, output_errors

_KEPT = 2  # a damaged newest falls back to the one before
_FIRST = "step-00000000-"  # made only where a run may have to go back that far
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``step-00001000-0123456789abcdef.pt``, named by step and SHA-256; but for the one before, older ones go."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{state['step']:08}-{_digest(data)}.pt"
    with atomic_file(path) as beside, output_errors(path):
        beside.write_bytes(data)
    for old in _checkpoint_files(folder)[_KEPT:]:
        if not old.name.startswith(_FIRST):
            old.unlink()
    return path


def _checkpoint_files(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.name.split("-")[1]), path.stat().st_mtime_ns), reverse=True)


def newest_whole(folder: Path, tried: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose content fits its name, and what was wrong with newer ones: they are renamed.

    Those ``tried`` are removed, but for the one of step 0.
    """
    problems: list[str] = []
    for path in _checkpoint_files(folder):
        if path.name in tried and not path.name.startswith(_FIRST):
            path.unlink()
        elif path.name.endswith(f"-{_digest(path.read_bytes())}.pt"):
            return path, problems
        else:
            path.rename(path.with_suffix(".damaged"))  # out of the way of whole ones
            problems.append(f"checkpoint {path.name} is damaged: left aside")
    return None, problems


def load_checkpoint(path: Path) -> dict[str, Any]:
    """On the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
