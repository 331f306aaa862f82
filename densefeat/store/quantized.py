"""The network in int8 that makes a store's rows: it stays in the store's folder, since later rows must come from it, too."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import TensorFile
from densefeat.errors import OutputError, WeightsError
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest

_MAX_BYTES = 2**31  # ten times what the largest network has in float32
_FILE = TensorFile("densefeat_int8", 1, "network in int8", "int8.safetensors", "densefeat extract --precision int8", _MAX_BYTES)
_PARTS = ("nodes", "constants")


def save_quantized(layout: Layout, record: dict[str, Any], nodes: bytes, constants: bytes) -> None:
    """Write a network in int8 and the JSON record of its calibration, whose ``sha256`` is that of both parts together."""
    parts = dict(zip(_PARTS, (nodes, constants), strict=True))
    arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
    _FILE.save(layout.quantized, {"record": record}, arrays, is_quantized)


def read_quantized(layout: Layout, manifest: Manifest) -> tuple[dict[str, Any], bytes, bytes] | None:
    """Read a store's network in int8: its record, nodes and constants. None for a store of another precision.

    Raises OutputError where it is missing, damaged, or not the one that the manifest names.
    """
    expected = manifest.settings.get("calibration")
    if expected is None:
        return None
    try:
        record, nodes, constants = _FILE.load(layout.quantized, _parse)
    except WeightsError as error:
        raise OutputError(f"{error}: restore it from a copy, or --overwrite starts over") from error
    if hashlib.sha256(nodes + constants).hexdigest() != expected or record.get("sha256") != expected:
        raise OutputError(
            f"{layout.quantized} is not the network that made the rows: restore it from a copy, or --overwrite starts over"
        )
    return record, nodes, constants


def _parse(_: Path, facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes, bytes]:
    record, parts = facts["record"], [tensors[name] for name in _PARTS]
    if not isinstance(record, dict) or any(part.dtype != np.uint8 for part in parts):
        raise TypeError("its parts are of other types")
    return record, parts[0].tobytes(), parts[1].tobytes()


def is_quantized(path: Path) -> bool:
    """Recognize a file of :func:`save_quantized`."""
    return _FILE.recognize(path)
