"""The graph to be made of a network or a probe, and the plain path that its outputs must equal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densefeat.anomaly import find_detector_file
from densefeat.errors import UsageError
from densefeat.export.answer import Answer, LogitsAnswer, ProbeAnswer, answer_in_numpy, answer_probe_in_numpy
from densefeat.export.detector_answer import DetectorAnswer, answer_detector_in_numpy
from densefeat.export.metadata import describe_detector, describe_network, describe_probe
from densefeat.export.module import Outputs, make_reference
from densefeat.export.source import DetectorSource, ExportSource, ProbeSource, load_detector_source, load_probe_source
from densefeat.images import Preprocessing
from densefeat.probing import find_probe_file


@dataclass(frozen=True)
class GraphPlan:
    """A graph to be made.

    ``outputs``: what it takes from the network; ``answer``: what it makes of that, if anything; ``reference``: computes the
    same by the plain network, from normalised images; ``facts``: the metadata that say where the graph comes from.
    """

    source: ExportSource
    preprocessing: Preprocessing
    outputs: Outputs
    answer: Answer | None
    reference: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    facts: dict[str, Any]

    @property
    def of_probe(self) -> bool:
        return isinstance(self.answer, ProbeAnswer)

    @property
    def has_learnt(self) -> bool:
        """Whether the answer was learnt from images of one size, which is then the only one."""
        return isinstance(self.answer, ProbeAnswer | DetectorAnswer)

    def whole(self) -> Outputs:
        """Return what a graph of the whole network would give: the features of all its blocks."""
        return replace(self.outputs, blocks="all", pool="avg" if "none" in self.outputs.pools else self.outputs.pool)


def plan_network(source: ExportSource, preprocessing: Preprocessing, outputs: Outputs) -> GraphPlan:
    """Plan the graph of a network's own outputs."""
    facts = describe_network(source, preprocessing, with_classes=outputs.by_classifier)
    reference = make_reference(source.model, outputs)
    if outputs.kind != "answer":
        return GraphPlan(source, preprocessing, outputs, None, reference, facts)
    task = source.loaded.task

    def answer(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return _to_tensors(answer_in_numpy(task, reference(x)["logits"].numpy()))

    return GraphPlan(source, preprocessing, outputs, LogitsAnswer(task), answer, facts | {"task": task})


@dataclass(frozen=True)
class Learnt:
    """A file of what was learnt on a network's features. ``kind``: ``"probe"`` or ``"detector"``."""

    kind: str
    file: Path


def find_learnt(model: str | Path) -> Learnt | None:
    """Return the probe or the detector that the user named by its file or its folder; None for a network."""
    if (file := find_detector_file(model)) is not None:
        return Learnt("detector", file)
    return None if (file := find_probe_file(model)) is None else Learnt("probe", file)


def plan_learnt(learnt: Learnt, weights: str | Path | None, ood: bool) -> GraphPlan:
    """Load a probe or a detector and its network, and plan its graph. ``ood``: whether a probe tells outliers, if it does."""
    if learnt.kind == "detector":
        return _plan_detector(load_detector_source(learnt.file, weights))
    return _plan_probe(load_probe_source(learnt.file, weights, ood))


def _plan_probe(source: ProbeSource) -> GraphPlan:
    """Plan the graph from images to a probe's answer."""
    probe, network = source.probe, source.network
    outputs = Outputs("features", source.blocks, source.tap, source.pool)
    extract = make_reference(network.model, outputs)
    blank = source.preprocessing.normalize(source.preprocessing.make_blank(1))
    answer = ProbeAnswer(probe, {name: values.shape[1] for name, values in extract(blank).items()})

    def compute(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return _to_tensors(answer_probe_in_numpy(probe, {name: values.numpy() for name, values in extract(x).items()}))

    facts = describe_network(network, source.preprocessing, with_classes=False) | describe_probe(source, answer)
    return GraphPlan(network, source.preprocessing, outputs, answer, compute, facts)


def _plan_detector(source: DetectorSource) -> GraphPlan:
    """Plan the graph from images to what a detector says of them."""
    detector, network = source.detector, source.network
    outputs = Outputs("maps", source.blocks, source.tap)
    extract = make_reference(network.model, outputs)
    blank = source.preprocessing.normalize(source.preprocessing.make_blank(1))
    answer = DetectorAnswer(detector, {name: values.shape[1] for name, values in extract(blank).items()})

    def compute(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return _to_tensors(answer_detector_in_numpy(detector, list(extract(x).values())))

    facts = describe_network(network, source.preprocessing, with_classes=False) | describe_detector(source)
    return GraphPlan(network, source.preprocessing, outputs, answer, compute, facts)


def _to_tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in values.items()}


def check_learnt_arguments(kind: str, graph: bool, wanted: Outputs, outputs: str | None, image_size: int | None) -> None:
    """Raise UsageError for what a probe or a detector (``kind``) records itself, or has not.

    ``graph``: whether the format is one of graphs.
    """
    if not graph:
        raise UsageError(f"a {kind} becomes a graph, from images to its answer: choose onnx, openvino or torch-export")
    if outputs not in (None, "answer"):
        raise UsageError(f"outputs {outputs!r}: the graph of a {kind} gives its answer; for {outputs} export the network")
    if replace(wanted, kind="features") != Outputs() or image_size is not None:
        raise UsageError(f"a {kind} records its blocks, tap, pool and image size: leave these options out")
