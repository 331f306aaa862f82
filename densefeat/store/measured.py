"""What a pass over the images of a job has measured so far, so that the pass goes on after an interruption."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from densefeat.base import atomic_file, check_tensors, output_errors, save_tensors
from densefeat.errors import WeightsError
from densefeat.store.layout import Layout

_IDENTITY, _POSITION = "densefeat_pass", "position"


def save_measured(layout: Layout, identity: str, position: int, arrays: dict[str, np.ndarray]) -> None:
    """Write what was measured of the images before ``position``. ``identity``: a text that is equal for equal passes."""
    with output_errors(layout.measured):
        layout.work.mkdir(parents=True, exist_ok=True)
    with atomic_file(layout.measured, is_measured) as beside:
        save_tensors(save_file, arrays, beside, {_IDENTITY: identity, _POSITION: str(position)})


def load_measured(layout: Layout, identity: str) -> tuple[int, dict[str, Any]] | None:
    """Read what :func:`save_measured` wrote for an equal pass; None where there is nothing that can be used."""
    path = layout.measured
    try:
        check_tensors(path, str(path))
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        if metadata.get(_IDENTITY) != identity:
            return None
        return int(metadata[_POSITION]), load_file(path)
    except (OSError, SafetensorError, WeightsError, ValueError, KeyError):
        return None


def is_measured(path: Path) -> bool:
    """Recognize a file of :func:`save_measured`."""
    try:
        with safe_open(path, "np") as file:
            return _IDENTITY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
