"""The certainty of a probe as tensors and metadata of its file."""

from typing import Any

import numpy as np

from densefeat.certainty import MAX_ROWS, TEMPERATURES, BlockDistances, Certainty, OutlierDetector
from densefeat.labels import Task

_PREFIX, _OUTLIERS = "certainty.", "outliers."
_MAX_BLOCKS = 1000


def pack_certainty(certainty: Certainty) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return tensors, with prefixes in their names, and metadata as JSON."""
    tensors: dict[str, np.ndarray] = {
        f"{_PREFIX}confidence": certainty.confidence,
        f"{_PREFIX}right": certainty.right.astype(np.uint8),
        f"{_PREFIX}nonconformity": certainty.nonconformity,
    }
    metadata: dict[str, Any] = {"temperature": certainty.temperature, "outliers": None}
    if (detector := certainty.outliers) is not None:
        tensors[f"{_OUTLIERS}validation"] = detector.validation
        metadata["outliers"] = [{"column": name, "k": block.k} for name, block in detector.blocks.items()]
        for place, block in enumerate(detector.blocks.values()):
            arrays = vars(block) | {"k": None}
            tensors |= {f"{_OUTLIERS}{place}.{name}": array for name, array in arrays.items() if array is not None}
    return tensors, metadata


def parse_certainty(tensors: dict[str, np.ndarray], metadata: dict[str, Any], task: Task) -> Certainty:
    """Raise ValueError, TypeError or KeyError if anything is not as :func:`pack_certainty` makes it."""
    confidence, right, nonconformity = (tensors[f"{_PREFIX}{name}"] for name in ("confidence", "right", "nonconformity"))
    temperature = metadata["temperature"]
    if type(temperature) is not float or not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise ValueError(f"temperature {temperature!r}")
    rows = len(nonconformity)
    _check(nonconformity, np.float64, (rows,))
    _check(confidence, np.float64, (0 if task == "regression" else rows,))
    _check(right, np.uint8, confidence.shape)
    if not 0 < rows <= MAX_ROWS or (right > 1).any():
        raise ValueError(f"{rows} validation rows, right up to {right.max(initial=0)}")
    if task != "regression" and ((confidence < 0).any() or (confidence > 1 + 1e-9).any()):
        raise ValueError("a confidence that is no probability")
    _check_ascending(confidence)
    _check_ascending(nonconformity)
    outliers = None if metadata["outliers"] is None else _parse_outliers(tensors, metadata["outliers"])
    return Certainty(task, temperature, confidence, right.astype(bool), nonconformity, outliers)


def _parse_outliers(tensors: dict[str, np.ndarray], entries: Any) -> OutlierDetector:
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_BLOCKS:
        raise ValueError("outliers of no blocks, or too many")
    blocks = {}
    for place, entry in enumerate(entries):
        column, k = entry["column"], entry["k"]
        if not isinstance(column, str) or column in blocks:
            raise ValueError(f"column {column!r}, no text or repeated")
        names = ("mean", "whitening", "centres", "bank", "location", "scale")
        blocks[column] = _parse_block({name: tensors[f"{_OUTLIERS}{place}.{name}"] for name in names}, k)
    validation = tensors[f"{_OUTLIERS}validation"]
    _check(validation, np.float64, (len(validation),))
    if not 0 < len(validation) <= MAX_ROWS:
        raise ValueError(f"outliers compared with {len(validation)} validation rows")
    _check_ascending(validation)
    return OutlierDetector(blocks, validation)


def _parse_block(arrays: dict[str, np.ndarray], k: Any) -> BlockDistances:
    mean, centres, bank, scale = (arrays[name] for name in ("mean", "centres", "bank", "scale"))
    size = len(mean)
    _check(mean, np.float32, (size,))
    _check(arrays["whitening"], np.float32, (size, size))
    _check(centres, np.float32, (len(centres), size))
    _check(bank, np.float16, (len(bank), size))
    _check(arrays["location"], np.float64, (2,))
    _check(scale, np.float64, (2,))
    if not size or not len(centres) or not (scale > 0).all() or type(k) is not int or not 1 <= k <= len(bank):
        raise ValueError(f"distances of {size} features, {len(centres)} centres, scale {scale}, k {k!r} of {len(bank)} rows")
    return BlockDistances(**arrays, k=k)


def _check(values: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(f"{values.dtype} {values.shape} where {np.dtype(dtype)} {shape} should be")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} numbers are NaN or infinite")


def _check_ascending(values: np.ndarray) -> None:
    if (values[1:] < values[:-1]).any():
        raise ValueError("values of validation rows that are not in order")
