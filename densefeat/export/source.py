"""The network to export, with what is known of it."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.anomaly import Detector, load_detector
from densefeat.features import FeatureExtractor, list_taps
from densefeat.images import Preprocessing
from densefeat.loading import LoadedNetwork, is_run_folder, load_network
from densefeat.nets import file_sha256, state_sha256
from densefeat.probing import Probe, load_probe
from densefeat.store import split_pools


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


@dataclass(frozen=True)
class ProbeSource:
    """A probe to export: ``blocks``, ``tap`` and ``pool`` of its network's features, as FeatureExtractor takes them."""

    probe: Probe
    sha256: str
    network: ExportSource
    preprocessing: Preprocessing
    blocks: tuple[int, ...]
    tap: str
    pool: tuple[str, ...]


def load_probe_source(file: Path, weights: str | Path | None, ood: bool = True) -> ProbeSource:
    """Load a probe, with what tells outliers unless ``ood`` is False, and the network that makes its features.

    Raises as :func:`densefeat.load_probe` and Probe.extractor.
    """
    probe = load_probe(file)
    if probe.certainty is not None and not ood:
        probe = replace(probe, certainty=replace(probe.certainty, outliers=None))
    extractor = probe.extractor(weights, "cpu")
    network, blocks = _take_network(extractor)
    pool = tuple(split_pools(extractor.pool))
    return ProbeSource(probe, file_sha256(file), network, extractor.preprocessing, blocks, extractor.tap, pool)


@dataclass(frozen=True)
class DetectorSource:
    """A detector of anomalies to export: ``blocks`` and ``tap`` of its network's maps, as FeatureExtractor takes them."""

    detector: Detector
    sha256: str
    network: ExportSource
    preprocessing: Preprocessing
    blocks: tuple[int, ...]
    tap: str


def load_detector_source(file: Path, weights: str | Path | None) -> DetectorSource:
    """Load a detector and the network that makes its features.

    Raises as :func:`densefeat.anomaly.load_detector` and Detector.extractor.
    """
    detector = load_detector(file)
    extractor = detector.extractor(weights, "cpu")
    network, blocks = _take_network(extractor)
    return DetectorSource(detector, file_sha256(file), network, extractor.preprocessing, blocks, extractor.tap)


def _take_network(extractor: FeatureExtractor) -> tuple[ExportSource, tuple[int, ...]]:
    """Take the network of an extractor, and the numbers of the blocks that it reads."""
    record = extractor.provenance
    name, facts = record["model"], record["weights"] | {"sha256": extractor.weights_sha256}
    if Path(facts["source"]).is_file():
        facts["source"] = Path(facts["source"]).name
        if is_run_folder(name):
            name = Path(name).name
            facts["source"] = f"{name}/{facts['source']}"
    model = extractor.model.to(memory_format=torch.contiguous_format).to("cpu", torch.float32).requires_grad_(False)
    every = list_taps(model, extractor.tap)
    blocks = tuple(every.index(tap) + 1 for tap in extractor.taps)
    return ExportSource(model.eval(), name, facts, LoadedNetwork(model, name, facts["source"])), blocks
