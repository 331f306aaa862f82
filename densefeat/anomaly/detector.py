"""A detector of anomalies as one safetensors file, with everything needed to use it, and without pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.anomaly.alarms import Alarms, check_rate
from densefeat.anomaly.bank import MemoryBank
from densefeat.anomaly.gaussians import PositionGaussians
from densefeat.base import TensorFile, is_number
from densefeat.extraction import identify
from densefeat.features import FeatureExtractor, GridRule
from densefeat.images import Preprocessing
from densefeat.search import rebuild_extractor

FILE = "detector.safetensors"
DETECTOR_FILE = TensorFile("densefeat_detector", 1, "detector", FILE, "densefeat anomaly fit")
_KINDS: dict[str, type[MemoryBank] | type[PositionGaussians]] = {"patchcore": MemoryBank, "padim": PositionGaussians}
METHODS = tuple(_KINDS)


@dataclass(frozen=True)
class Detector:
    """A model of good images, and the score above which an image is anomalous.

    ``normal``: the model of good images, which measures grids of features. ``alarms``: the held-out scores, which give p-values
    and the threshold. ``rule``: how grids are made; ``shape``: their height and width. ``provenance``: that of the network, as
    in a store's manifest. ``learnt``: the number of images learnt from, without held-out ones.
    """

    normal: MemoryBank | PositionGaussians
    alarms: Alarms
    rule: GridRule
    shape: tuple[int, int]
    provenance: dict[str, Any]
    learnt: int
    path: Path | None = None

    @property
    def method(self) -> str:
        """``"patchcore"`` or ``"padim"``."""
        return next(name for name, kind in _KINDS.items() if isinstance(self.normal, kind))

    @property
    def size(self) -> int:
        """The size of its arrays in bytes, without the network."""
        return sum(array.nbytes for array in self.normal.arrays.values())

    @property
    def image_size(self) -> int:
        """Pixels a side of the square that the network reads."""
        size: int = self.provenance["preprocessing"]["size"]
        return size

    def measure(self, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure grids ``(N, D, h, w)`` on their device: return scores ``(N,)`` and distances of positions ``(N, h, w)``.

        Both are float32. Features are rounded to float16 first, as those were that the detector has learnt from.
        """
        measured: tuple[torch.Tensor, torch.Tensor] = self.normal.to(grid.device)(grid.half().float())
        return measured

    def extractor(self, weights: str | Path | None = None, device: str = "auto") -> FeatureExtractor:
        """Load the network that computes the features, with the recorded preprocessing.

        ``weights``: the checkpoint file, if it has been moved; its content must be the same.
        Raises UsageError or WeightsError as :func:`densefeat.search.rebuild_extractor`.
        """
        subject = DETECTOR_FILE.describe(self.path)
        return rebuild_extractor(self.provenance, self.provenance["blocks"], subject, weights, device, "fit it again")


class GridNet(nn.Module):
    """A network that turns images ``(N, C, H, W)`` into the grid of a rule, float32 ``(N, D, h, w)``."""

    def __init__(self, extractor: FeatureExtractor, rule: GridRule) -> None:
        super().__init__()
        self.extractor, self.rule = extractor, rule
        self.model = extractor.model
        identify(self, json.dumps(rule.to_json()).encode())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.extractor.forward_grid(x, self.rule)


def save_detector(path: Path, detector: Detector) -> None:
    """Write a detector, whole or not at all. Raises OutputError if it cannot be written."""
    facts = {
        "method": detector.method,
        "rate": detector.alarms.rate,
        "rule": detector.rule.to_json(),
        "shape": list(detector.shape),
        "provenance": detector.provenance,
        "learnt": detector.learnt,
    }
    DETECTOR_FILE.save(path, facts, detector.normal.arrays | {"held_out": detector.alarms.held_out}, DETECTOR_FILE.recognize)


def find_detector_file(path: str | Path) -> Path | None:
    """Return the file of a detector that the user named, directly or by its folder; None for anything else.

    One that is damaged is known by its name.
    """
    file = DETECTOR_FILE.find(path)
    return file if file.is_file() and (file.name == FILE or DETECTOR_FILE.recognize(file)) else None


def load_detector(path: str | Path) -> Detector:
    """Load a detector from its file, or from the folder that ``densefeat anomaly fit --out`` wrote.

    Raises WeightsError for a file that is missing, damaged, of a newer version, or no detector.
    """
    return DETECTOR_FILE.load(path, _parse_detector)


def _parse_detector(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Detector:
    """Raise ValueError, TypeError, KeyError or UsageError if anything is not as :func:`save_detector` writes it."""
    subject, provenance = DETECTOR_FILE.describe(path), metadata["provenance"]
    rule = GridRule.from_json(metadata["rule"], subject)
    size = Preprocessing.from_json(provenance["preprocessing"], subject).size
    shape = rule.find_shape(size, size)
    if metadata["shape"] != list(shape):
        raise ValueError(f"a grid of shape {metadata['shape']} for images of {size} pixels and a stride of {rule.stride}")
    held_out, rate, learnt = tensors.pop("held_out"), metadata["rate"], metadata["learnt"]
    if not is_number(rate) or type(learnt) is not int:
        raise ValueError(f"a rate of {rate!r}, {learnt!r} images")
    check_rate(rate)
    _check_numbers("held_out", held_out, np.float32, (held_out.size,))
    if (np.diff(held_out) < 0).any() or rate * (held_out.size + 1) < 1 - 1e-6:
        raise ValueError(f"{held_out.size} held-out scores, in order or not, for a rate of {rate:g}")
    if metadata["method"] == "patchcore":
        features = tensors["features"]
        _check_numbers("features", features, np.float16, (len(features), features.shape[-1]))
        _check_dims(rule, features.shape[1])
        return Detector(MemoryBank(features), Alarms(held_out, rate), rule, shape, provenance, learnt, path)
    if metadata["method"] != "padim":
        raise ValueError(f"a method {metadata['method']!r}")
    mean, whitening = tensors["mean"], tensors["whitening"]
    dims = mean.shape[-1]
    _check_numbers("mean", mean, np.float32, (*shape, dims))
    _check_numbers("whitening", whitening, np.float32, (*shape, dims, dims))
    return Detector(PositionGaussians(mean, whitening), Alarms(held_out, rate), rule, shape, provenance, learnt, path)


def _check_dims(rule: GridRule, dims: int) -> None:
    if rule.dims is not None and rule.dims != dims:
        raise ValueError(f"{dims} numbers a position, of a projection to {rule.dims}")


def _check_numbers(name: str, values: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape or not values.size:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} numbers of {name} are NaN or infinite")
