"""From a network's outputs to an answer, as modules that compute the same as a probe does in numpy."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from densefeat.certainty import to_probabilities
from densefeat.export.cutting import make_selection
from densefeat.export.head_modules import compute_features, make_head_module
from densefeat.export.outlier_module import OutlierModule
from densefeat.labels import Task
from densefeat.probing import Probe

STEPS = 2.5  # held-out rows whose statistic may be on the other side of an image's after rounding


class Answer(nn.Module):
    """The end of a graph: from the network's outputs by name to the answer by name, of which ``names`` has the order.

    ``reads``: the positions of the channels, ascending, that are read from each of the network's outputs; ``widths``: how many
    channels those have. ``steps``: of outputs that change in steps, how far rounding may move them.
    """

    names: list[str]
    reads: Mapping[str, np.ndarray] = {}
    widths: Mapping[str, int] = {}
    steps: Mapping[str, float] = {}


class _TaskAnswer(Answer):
    """An answer to a task.

    single: ``scores`` and ``probabilities`` ``(N, K)``, float32, and ``label`` ``(N,)``, int64, the most probable class; multi:
    without ``label``; regression: ``value`` ``(N,)``.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.names = ["value"] if task == "regression" else ["scores", "probabilities"] + ["label"] * (task == "single")

    def answer_scores(self, scores: torch.Tensor, temperature: float = 1.0) -> dict[str, torch.Tensor]:
        if self.task == "regression":
            return {"value": scores[:, 0]}
        scaled = scores / temperature
        if self.task == "multi":
            return {"scores": scores, "probabilities": scaled.sigmoid()}
        return {"scores": scores, "probabilities": scaled.softmax(1), "label": scores.argmax(1)}


class LogitsAnswer(_TaskAnswer):
    """The answer of a network with a classifier of its own."""

    def forward(self, results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.answer_scores(results["logits"])


class ProbeAnswer(_TaskAnswer):
    """The answer of a probe's head, with ``features`` ``(N, R)``, float32: those that its last step uses, see HeadModule.

    And with ``ood`` ``(N,)``, float32, a p-value, if the probe tells outliers.

    Args:
        probe: The probe.
        widths: The channels of each of the network's columns.

    Raises:
        UsageError: A head that is too large for a graph. WeightsError: one of another number of features than the columns have.
    """

    def __init__(self, probe: Probe, widths: Mapping[str, int]) -> None:
        super().__init__(probe.task)
        self.widths = dict(widths)
        self.head = make_head_module(probe.head, {name: widths[name] for name in probe.columns})
        self.temperature = _find_temperature(probe)
        detector = None if probe.certainty is None else probe.certainty.outliers
        self.outliers = None if detector is None else OutlierModule(detector, widths)
        whole = [] if self.outliers is None else self.outliers.names
        self.reads = self.head.reads | {name: np.arange(widths[name]) for name in whole}
        self.selections = nn.ModuleList(
            make_selection(channels, len(self.reads[name])) for name, channels in self.head.reads.items()
        )
        self.names += ["ood"] * (detector is not None) + ["features"]
        self.steps = {} if detector is None else {"ood": STEPS / (len(detector.validation) + 1)}

    def forward(self, results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        columns = {name: select(results[name]) for name, select in zip(self.head.reads, self.selections, strict=True)}
        features, scores = self.head(columns)
        answer = self.answer_scores(scores, self.temperature) | {"features": features}
        return answer if self.outliers is None else answer | {"ood": self.outliers(results)}


def _find_temperature(probe: Probe) -> float:
    return 1.0 if probe.certainty is None else probe.certainty.temperature


def answer_probe_in_numpy(probe: Probe, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute what :class:`ProbeAnswer` does from all channels of the network's columns."""
    answer = answer_in_numpy(probe.task, probe.scores(columns), _find_temperature(probe))
    if (ood := probe.p_values(columns)) is not None:
        answer["ood"] = ood.astype(np.float32)
    return answer | {"features": compute_features(probe.head, [columns[name] for name in probe.columns])}


def answer_in_numpy(task: Task, scores: np.ndarray, temperature: float = 1.0) -> dict[str, np.ndarray]:
    """Compute what :class:`Answer` does from scores ``(N, K)``, of a regression ``(N,)``."""
    if task == "regression":
        return {"value": scores}
    probabilities = to_probabilities(task, scores, temperature).astype(np.float32)
    return {"scores": scores, "probabilities": probabilities} | ({"label": scores.argmax(1)} if task == "single" else {})
