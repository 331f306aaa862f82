"""From a network's maps to what a detector of anomalies says of an image, as a module."""

from collections.abc import Mapping

import numpy as np
import torch

from densefeat.anomaly import Detector
from densefeat.export.answer import STEPS, Answer


class DetectorAnswer(Answer):
    """``score``, ``p_value`` ``(N,)``, float32, ``anomalous`` ``(N,)``, bool, and ``distances`` ``(N, h, w)``, float32.

    Features are not rounded to float16, as ``densefeat anomaly score`` does: where two tools round a feature to different
    numbers, their distances would be apart by far more than by their arithmetic.

    Args:
        detector: The detector.
        widths: The channels of each of the maps, in the network's order.
    """

    held_out: torch.Tensor

    def __init__(self, detector: Detector, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.names = ["score", "p_value", "anomalous", "distances"]
        self.reads = {name: np.arange(width) for name, width in widths.items()}
        self.widths = dict(widths)
        self.steps = {"p_value": STEPS / (len(detector.alarms.held_out) + 1)}
        self.rule, self.size, self.normal = detector.rule, detector.image_size, detector.normal
        self.threshold = detector.alarms.threshold
        self.register_buffer("held_out", torch.from_numpy(detector.alarms.held_out))

    def forward(self, results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        grid = self.rule.combine([results[name] for name in self.reads], self.size, self.size)
        scores, distances = self.normal(grid)
        higher = (self.held_out >= scores[:, None]).float().sum(1)
        p_values = (1 + higher) / (len(self.held_out) + 1)
        return {"score": scores, "p_value": p_values, "anomalous": ~(scores <= self.threshold), "distances": distances}


def answer_detector_in_numpy(detector: Detector, maps: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Compute what :class:`DetectorAnswer` does from the maps ``(N, C, H, W)`` of its blocks."""
    scores, distances = detector.normal(detector.rule.combine(maps, detector.image_size, detector.image_size))
    values = scores.numpy()
    return {
        "score": values,
        "p_value": detector.alarms.p_values(values).astype(np.float32),
        "anomalous": detector.alarms.judge(values),
        "distances": distances.numpy(),
    }
