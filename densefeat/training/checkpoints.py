"""Checkpoints: complete or absent; their names hold a hash that shows damage."""

import hashlib
import io
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from densefeat.base import atomic_file, describe_error, is_plain_file, match_temporary, output_errors, remove_folder, set_aside
from densefeat.errors import DensefeatError, WeightsError
from densefeat.nets import load_torch_file

_MAX_KEPT = 2  # if the newest is damaged, the one before remains
_FIRST = "step-00000000-"  # written only by runs that may have to return to their start
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")
_DAMAGED = re.compile(r"step-\d+-[0-9a-f]{16}\.damaged(-\d+)?")


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``step-00001000-0123456789abcdef.pt``, named by step and SHA-256; remove all but the one before it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    path = folder / f"step-{state['step']:08}-{_digest(data)}.pt"
    with atomic_file(path) as beside, output_errors(path):
        beside.write_bytes(data)
    for old in _list_checkpoints(folder)[_MAX_KEPT:]:
        if not old.name.startswith(_FIRST):
            old.unlink()
    return path


def _list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoint files of a folder, newest first."""
    files = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name) and is_plain_file(path)]
    return sorted(files, key=lambda path: (int(path.name.split("-")[1]), path.stat().st_mtime_ns), reverse=True)


def newest_checkpoint(folder: Path, rejected: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, and a message for each newer one that is damaged and was renamed.

    Checkpoints with ``rejected`` names are removed, except that of step 0.
    """
    messages: list[str] = []
    for path in _list_checkpoints(folder):
        if path.name in rejected and not path.name.startswith(_FIRST):
            path.unlink()
        elif path.name.endswith(f"-{_digest(path.read_bytes())}.pt"):
            return path, messages
        else:
            set_aside(path, f"{path.stem}.damaged")  # so that it does not count among those kept
            messages.append(f"checkpoint {path.name} is damaged and was renamed to .damaged")
    return None, messages


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder unless it holds something else."""
    if folder.is_symlink():
        return
    for path in folder.glob("*step-*"):
        name = match_temporary(path.name) or path.name
        if is_plain_file(path) and (_NAME.fullmatch(name) or _DAMAGED.fullmatch(name)):
            path.unlink()
    remove_folder(folder)


def restore_checkpoint(path: Path, restore: Callable[[dict[str, Any]], None]) -> None:
    """Load a checkpoint to the CPU and call ``restore`` with its content.

    Raises WeightsError where that is not a state that fits, or can be read only by running its code.
    """
    title = f"checkpoint {str(path)!r}"
    content = load_torch_file(path, title)
    try:
        restore(content)
    except (DensefeatError, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"does not hold the state of this run ({type(error).__name__}: {describe_error(error)})"
        raise WeightsError(f"{title}: {what}: name another --out") from error


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
