"""torch.export's own file."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from densefeat.export.check import Run
from densefeat.export.traced import Traced

_EXTRA = "densefeat.json"


def _convert(traced: Traced, names: list[str], metadata: dict[str, Any]) -> tuple[ExportedProgram, str]:  # noqa: ARG001
    """Outputs are a dict by name; ``metadata`` is the extra file ``densefeat.json``."""
    return traced.program, json.dumps(metadata)


def _save(converted: tuple[ExportedProgram, str], path: Path) -> None:
    program, metadata = converted
    torch.export.save(program, path, extra_files={_EXTRA: metadata})


def _open_file(path: Path) -> tuple[str, Run]:
    """torch's version, and the file read back: one that this process wrote, for reading it can run code."""
    module = torch.export.load(path).module()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(images).values())

    return f"torch {torch.__version__}", run
