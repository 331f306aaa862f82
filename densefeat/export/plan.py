"""The graph to be made of a network or a probe, and the plain path that its outputs must equal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from densefeat.errors import UsageError
from densefeat.export.answer import Answer, LogitsAnswer, ProbeAnswer, answer_in_numpy, answer_probe_in_numpy
from densefeat.export.metadata import describe_network, describe_probe
from densefeat.export.module import Outputs, make_reference
from densefeat.export.source import ExportSource, ProbeSource
from densefeat.images import Preprocessing


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


def plan_probe(source: ProbeSource) -> GraphPlan:
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


def _to_tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in values.items()}


def check_probe_arguments(graph: bool, wanted: Outputs, outputs: str | None, image_size: int | None) -> None:
    """Raise UsageError for what a probe records itself, or has not. ``graph``: whether the format is one of graphs."""
    if not graph:
        raise UsageError("a probe becomes a graph, from images to its answer: choose onnx, openvino or torch-export")
    if outputs not in (None, "answer"):
        raise UsageError(f"outputs {outputs!r}: the graph of a probe gives its answer; for {outputs} export the network")
    if replace(wanted, kind="features") != Outputs() or image_size is not None:
        raise UsageError("a probe records its blocks, tap, pool and image size: leave these options out")
