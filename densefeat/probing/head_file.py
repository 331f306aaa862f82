"""Heads as tensors and facts, for files."""

from typing import Any

import numpy as np

from densefeat.labels import Targets, Task
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.fitting import LinearHead
from densefeat.probing.knn import KnnHead
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.protocols import Head

_LINEAR, _NEIGHBOURS, _LAYERS, _ATTENTIVE = "linear", "neighbours", "layers", "attentive"
_MAX_FEATURES = 2**31


def pack_head(head: Head) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a head's tensors, and its other facts as JSON: what :func:`parse_head` takes."""
    if isinstance(head, LinearHead):
        return {"weight": head.weight, "bias": head.bias}, {"head": _LINEAR, "squeeze": head.squeeze}
    if isinstance(head, LayersHead):
        tensors = {"weight": head.weight, "bias": head.bias, "kept": head.kept, "widths": np.array(head.widths, np.int64)}
        return tensors, {"head": _LAYERS, "squeeze": head.squeeze}
    if isinstance(head, AttentiveHead):
        tensors = {"weight": head.weight, "bias": head.bias}
        for place, (queries, values) in enumerate(zip(head.queries, head.values, strict=True)):
            tensors |= {f"queries.{place}": queries, f"values.{place}": values}
        return tensors, {"head": _ATTENTIVE}
    values = head.targets.values
    tensors = {"features": head.features, "values": values.astype(np.uint8) if values.dtype == bool else values}
    return tensors, {"head": _NEIGHBOURS, "k": head.k, "temperature": head.temperature}


def parse_head(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], task: Task, classes: tuple[str, ...], columns: int
) -> Head:
    """Make the head of :func:`pack_head`. Raises ValueError, TypeError or KeyError for other values."""
    if metadata["head"] == _LINEAR:
        return _parse_linear(tensors, len(classes), metadata["squeeze"])
    if metadata["head"] == _LAYERS:
        return _parse_layers(tensors, len(classes), metadata["squeeze"])
    if metadata["head"] == _NEIGHBOURS:
        return _parse_neighbours(tensors, task, classes, metadata["k"], metadata["temperature"])
    if metadata["head"] == _ATTENTIVE:
        return _parse_attentive(tensors, len(classes), columns)
    raise ValueError(f"a head of kind {metadata['head']!r}")


def parse_names(value: Any) -> tuple[str, ...]:
    """Read a list of different names. Raises ValueError for anything else."""
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


def _parse_layers(tensors: dict[str, np.ndarray], classes: int, squeeze: Any) -> LayersHead:
    linear = _parse_linear(tensors, classes, squeeze)
    widths, kept = tensors["widths"], tensors["kept"]
    if any(array.dtype != np.int64 or array.ndim != 1 or not len(array) for array in (widths, kept)):
        raise ValueError(f"layer widths {widths.dtype} {widths.shape}, kept features {kept.dtype} {kept.shape}")
    sizes = tuple(widths.tolist())
    if min(sizes) < 1 or sum(sizes) > _MAX_FEATURES or len(kept) != linear.weight.shape[1]:
        raise ValueError(f"{len(kept)} kept features of {sum(sizes)} in layers of {min(sizes)} and more")
    if kept[0] < 0 or kept[-1] >= sum(sizes) or (kept[1:] <= kept[:-1]).any():
        raise ValueError(f"kept features that are not ascending positions below {sum(sizes)}")
    return LayersHead(sizes, kept, linear.weight, linear.bias, linear.squeeze)


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


def _parse_attentive(tensors: dict[str, np.ndarray], classes: int, columns: int) -> AttentiveHead:
    if not classes:
        raise ValueError("an attentive head for numbers")
    queries = tuple(tensors[f"queries.{place}"] for place in range(columns))
    values = tuple(tensors[f"values.{place}"] for place in range(columns))
    for place, (query, value) in enumerate(zip(queries, values, strict=True)):
        fits = query.ndim == 2 and value.ndim == 3 and query.shape == (value.shape[0], value.shape[2]) and value.size
        if query.dtype != np.float32 or value.dtype != np.float32 or not fits:
            raise ValueError(f"queries {query.dtype} {query.shape} and values {value.dtype} {value.shape} of column {place}")
        if query.shape[0] > query.shape[1]:  # the weights over positions would need more memory than the maps
            raise ValueError(f"{query.shape[0]:,} queries of {query.shape[1]:,} channels of column {place}")
    size = sum(value.shape[0] * value.shape[1] for value in values)
    linear = _parse_linear(tensors, classes, squeeze=False)
    if linear.weight.shape[1] != size:
        raise ValueError(f"weight {linear.weight.shape} for {size} pooled values")
    _check_numbers(*queries, *values)
    return AttentiveHead(queries, values, linear.weight, linear.bias)


def _check_numbers(*arrays: np.ndarray) -> None:
    for values in arrays:
        if not np.isfinite(values).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} numbers are NaN or infinite")
