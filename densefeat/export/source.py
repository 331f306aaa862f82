"""The network to export, with what is known of it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.loading import LoadedNetwork, load_network
from densefeat.nets import state_sha256


@dataclass(frozen=True)
class ExportSource:
    """The network to export: in eval mode, float32, on the CPU, and shared with nobody.

    ``name`` and ``weights`` (source, SHA-256, licence) go into the files. They hold no paths of this machine, only the last
    part of a file's or folder's name. ``loaded``: the network as the loader returned it.
    """

    model: nn.Module
    name: str
    weights: dict[str, Any]
    loaded: LoadedNetwork

    @property
    def config(self) -> dict[str, Any]:
        return dict(getattr(self.model, "pretrained_cfg", None) or {})


def load_source(model: str | nn.Module, weights: str | Path | None, head: bool) -> ExportSource:
    """Load a network by name or from a run's folder, or copy a module. ``head``: as for :func:`load_network`."""
    loaded = load_network(model, weights, head)
    network, name, facts = loaded.model, loaded.name, loaded.provenance["weights"]
    if isinstance(model, nn.Module):
        network = copy.deepcopy(network)
        name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture") or name
        facts["sha256"] = state_sha256(network)
    elif loaded.run is not None:
        name = Path(name).name
        facts |= {"source": f"{name}/{Path(loaded.source).name}", "license": loaded.run.pretrained_cfg.get("license")}
    elif weights is not None:
        facts["source"] = Path(weights).name
    network.eval().to("cpu", torch.float32).requires_grad_(False)
    return ExportSource(network, name, facts, loaded)
