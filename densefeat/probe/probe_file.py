"""A fitted probe as one safetensors file, with everything needed to use it, and without pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from densefeat.base import atomic_file, check_tensors, describe_error, save_tensors
from densefeat.errors import DensefeatError, UsageError, WeightsError
from densefeat.features import FeatureExtractor
from densefeat.labels import Targets, Task
from densefeat.probe.fitting import LinearHead
from densefeat.probe.knn import KnnHead
from densefeat.probe.protocols import Head
from densefeat.search import rebuild_extractor

FILE = "probe.safetensors"
_VERSION = 1
_METADATA_KEY = "densefeat_probe"
_MAX_METADATA = 2**26  # characters of JSON
_LINEAR, _NEIGHBOURS = "linear", "neighbours"
_TASKS = ("single", "multi", "regression")


@dataclass(frozen=True)
class Probe:
    """A head on columns of features, side by side in their order.

    ``provenance``: of the features, as in a store's manifest; ``told``: protocol, setting, and metrics of the fit, as JSON.
    """

    task: Task
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    provenance: dict[str, Any]
    head: Head
    told: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Score features by column, ``(n, C)`` each, as an extractor returns them: float32 ``(n, K)``, regression ``(n,)``.

        Raises UsageError if a column is missing, or has another size than the probe was fitted on.
        """
        if missing := [name for name in self.columns if name not in features]:
            raise UsageError(f"no features {', '.join(missing)} for this probe: it takes {', '.join(self.columns)}")
        parts = [np.asarray(features[name], np.float32) for name in self.columns]
        return self.head.scores(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))

    def extractor(self, weights: str | Path | None = None, device: str = "auto") -> FeatureExtractor:
        """Load the network that makes this probe's features, up to its last block, with the recorded preprocessing.

        ``weights``: a checkpoint, if the recorded one has been moved; it must be the same file.
        Raises UsageError or WeightsError as :func:`densefeat.search.queries.rebuild_extractor`.
        """
        subject = f"probe {str(self.path)!r}" if self.path else "this probe"
        try:
            return rebuild_extractor(
                self.provenance, self.columns, subject, weights, device, "probe a store of densefeat extract"
            )
        except DensefeatError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise WeightsError(f"{subject}: its record of the network is damaged ({type(error).__name__}: {error})") from error


def save_probe(path: Path, probe: Probe) -> None:
    """Write a probe atomically. Raises OutputError if it cannot be written."""
    head = probe.head
    metadata: dict[str, Any] = {
        "version": _VERSION,
        "task": probe.task,
        "classes": probe.classes,
        "columns": probe.columns,
        "told": probe.told,
        "provenance": probe.provenance,
    }
    if isinstance(head, LinearHead):
        tensors = {"weight": head.weight, "bias": head.bias}
        metadata |= {"head": _LINEAR, "squeeze": head.squeeze}
    else:
        values = head.targets.values
        tensors = {"features": head.features, "values": values.astype(np.uint8) if values.dtype == bool else values}
        metadata |= {"head": _NEIGHBOURS, "k": head.k, "temperature": head.temperature}
    text = json.dumps(metadata, ensure_ascii=False)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_file(path) as beside:
        save_tensors(save_file, arrays, beside, {_METADATA_KEY: text})


def is_probe_file(path: Path) -> bool:
    """Recognize the file of a probe, of any version."""
    try:
        with safe_open(path, "np") as file:
            return _METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_probe(path: str | Path) -> Probe:
    """Load a probe from its file, or from the folder that ``densefeat probe --out`` wrote.

    Raises WeightsError for a file that is missing, damaged, of a newer version, or not a probe.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    subject = f"probe {str(path)!r}"
    if not path.is_file():
        raise WeightsError(f"{subject}: no such file; give the folder of `densefeat probe --out`, or the {FILE} in it")
    try:
        check_tensors(path, subject)
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            if text is None or len(text) > _MAX_METADATA:
                raise WeightsError(f"{subject}: not a probe of densefeat")
            metadata = json.loads(text)
            version = metadata["version"]
            if not isinstance(version, int) or version > _VERSION:
                raise WeightsError(f"{subject}: its version is {version}, this one reads up to {_VERSION}: update densefeat")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return _parse_probe(metadata, tensors, path)
    except DensefeatError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        reason = describe_error(error)
        raise WeightsError(f"{subject}: damaged, or not a probe ({type(error).__name__}: {reason})") from error


def _parse_probe(metadata: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> Probe:
    """Raise ValueError, TypeError or KeyError if anything is not as :func:`save_probe` writes it."""
    task, classes = metadata["task"], _parse_names(metadata["classes"])
    columns = _parse_names(metadata["columns"])
    if task not in _TASKS or not columns or (task == "regression") != (not classes) or len(classes) == 1:
        raise ValueError(f"task {task!r} of {len(classes)} classes, {len(columns)} columns")
    for name in ("provenance", "told"):
        if not isinstance(metadata[name], dict):
            raise TypeError(f"{name} is not an object")
    head: Head
    if metadata["head"] == _LINEAR:
        head = _parse_linear(tensors, len(classes), metadata["squeeze"])
    elif metadata["head"] == _NEIGHBOURS:
        head = _parse_neighbours(tensors, task, classes, metadata["k"], metadata["temperature"])
    else:
        raise ValueError(f"a head of kind {metadata['head']!r}")
    return Probe(task, classes, columns, metadata["provenance"], head, metadata["told"], path)


def _parse_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) < len(value):
        raise ValueError("names that are not text, or repeated")
    return tuple(value)


def _parse_linear(tensors: dict[str, np.ndarray], classes: int, squeeze: Any) -> LinearHead:
    weight, bias = tensors["weight"], tensors["bias"]
    outputs = classes or 1
    if weight.dtype != np.float32 or bias.dtype != np.float32 or squeeze is not (classes == 0):
        raise ValueError(f"weight {weight.dtype}, bias {bias.dtype}")
    if weight.ndim != 2 or weight.shape[0] != outputs or not weight.shape[1] or bias.shape != (outputs,):
        raise ValueError(f"weight {weight.shape} and bias {bias.shape} for {outputs} outputs")
    _check_numbers(weight, bias)
    return LinearHead(weight, bias, squeeze)


def _parse_neighbours(
    tensors: dict[str, np.ndarray], task: Task, classes: tuple[str, ...], k: Any, temperature: Any
) -> KnnHead:
    features, values = tensors["features"], tensors["values"]
    shape = (len(features), len(classes)) if task == "multi" else (len(features),)
    kind = {"single": np.int64, "multi": np.uint8, "regression": np.float64}[task]
    if features.dtype not in (np.float16, np.float32) or features.ndim != 2 or values.dtype != kind or values.shape != shape:
        raise ValueError(f"features {features.dtype} {features.shape} with values {values.dtype} {values.shape}")
    if task == "single" and len(values) and not 0 <= values.min() <= values.max() < len(classes):
        raise ValueError(f"a class {values.min()} or {values.max()} of {len(classes)}")
    if type(k) is not int or not 1 <= k <= len(features) or type(temperature) is not float or not temperature > 0:
        raise ValueError(f"k {k!r} of {len(features)} rows, temperature {temperature!r}")
    _check_numbers(features, values)
    return KnnHead(features, Targets(task, classes, values.astype(bool) if task == "multi" else values), k, temperature)


def _check_numbers(*arrays: np.ndarray) -> None:
    for values in arrays:
        if not np.isfinite(values).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} numbers are NaN or infinite")
