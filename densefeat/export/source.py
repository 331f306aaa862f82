"""The network to export, with what is known of it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.evaluation import class_names
from densefeat.loading import create_model, load_backbone, load_run, names_folder, read_run
from densefeat.nets import file_sha256, state_sha256


@dataclass(frozen=True)
class Source:
    """``model``: in eval mode, float32, on the CPU, nobody else's. ``weights``: their source, SHA-256 and licence.

    ``run``: the folder that it came from; ``published``: the weights are those that its name stands for; ``file``: those given
    instead. Paths are kept out of what is written: of a file or folder its name alone is told.
    """

    model: nn.Module
    name: str
    weights: dict[str, Any]
    run: Path | None = None
    published: bool = False
    file: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        return dict(getattr(self.model, "pretrained_cfg", None) or {})

    @property
    def num_classes(self) -> int:
        """0: without a classifier, or of a head that was left out."""
        return getattr(self.model, "num_classes", 0)

    @property
    def classes(self) -> list[str] | None:
        """Names, in the order of the outputs; None: not known, or without a classifier."""
        names = self.config.get("label_names")
        if names is None and self.num_classes and (self.published or self.file):
            return class_names(self.model, self.file)
        return list(map(str, names)) if names and len(names) == self.num_classes else None


def load_source(model: str | nn.Module, weights: str | Path | None, with_head: bool) -> Source:
    """A network by name, of a run's folder, or a copy of a model object.

    ``with_head``: of a run whose head is ours, that too; else such a run's network comes without.
    """
    if isinstance(model, nn.Module):
        source = _of_object(model, weights)
    elif names_folder(model) and weights is None:
        source = _of_run(model, with_head)
    else:
        made, provenance = create_model(model, weights)
        told = provenance["weights"]["source"] if weights is None else Path(weights).name
        known = provenance["weights"] | {"source": told}
        file = None if weights is None else Path(weights)
        source = Source(made, provenance["model"], known, published=weights is None, file=file)
    source.model.eval().to("cpu", torch.float32).requires_grad_(False)
    return source


def _of_object(model: nn.Module, weights: str | Path | None) -> Source:
    if weights is not None:
        raise UsageError("weights are for a model given by name: load them into your own with densefeat.load_weights")
    config = getattr(model, "pretrained_cfg", None) or {}
    known = {"source": "a model object", "sha256": state_sha256(model), "license": None}
    return Source(copy.deepcopy(model), config.get("architecture") or type(model).__name__, known)


def _of_run(folder: str, with_head: bool) -> Source:
    run = read_run(folder)
    model = load_run(folder) if with_head or run.head == "linear" else load_backbone(run)[0]
    name = run.path.resolve().name
    licence = run.pretrained_cfg.get("license")
    known = {"source": f"{name}/{run.weights.name}", "sha256": file_sha256(run.weights), "license": licence}
    return Source(model, name, known, run.path)
