"""safetensors: a network's weights under the names that densefeat and timm read."""

import copy
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from densefeat.export.check import Run
from densefeat.nets import load_weights


def write(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """All of the state dict; several entries of ``metadata`` may stand in any order in the file."""
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata)


def _write_described(model: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """``metadata`` is the entry ``densefeat``, as JSON; classes' names are ``classes``, too, where ``evaluate`` reads them."""
    names = metadata.get("label_names")
    write(model, path, {"densefeat": json.dumps(metadata)} | ({"classes": json.dumps(names)} if names else {}))


def _open_file(model: nn.Module, path: Path) -> tuple[str, Run]:
    """The file read into a network whose weights were all another's."""
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.zero_()
    load_weights(blank, path)
    return f"safetensors {safetensors.__version__}, read by densefeat.load_weights", lambda images: [blank(images)]
