"""Read the DenseNets of Keras' files: .h5 of all versions, .weights.h5 and .keras of Keras 3. Nothing in them is run.

Keras' networks compute what ours do: they pad by layers of their own, the same on all sides, and their 2×2 pools drop an odd
row as ours do. Two things differ, and both are in the tensors: the order of a kernel's dimensions, and the epsilon of the
norms, 1.001e-5 in place of 1e-5, whose difference is added to the variances.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from densefeat.base import shorten_text
from densefeat.errors import WeightsError

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_KERAS_ENTRY = "model.weights.h5"  # of a .keras archive
_READER = Path(__file__).with_name("hdf5_reader.py")
_REFUSED = 3  # its exit code
_PATIENCE = 120  # seconds, in which it reads some gigabytes
_EPSILON_DIFFERENCE = 1.001e-5 - 1e-5
_NAMES = {  # of torch
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def is_keras_file(path: Path) -> bool:
    """Check for HDF5, or an archive that holds Keras' weights."""
    with open(path, "rb") as file:
        if file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _KERAS_ENTRY in archive.namelist()


def read_keras_file(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a Keras file, shaped as torch's, under the names of Keras' layers and torch's variables.

    The only dense layer is named ``classifier``, several are ``classifier.0`` and so on. Raises WeightsError for a file that
    is damaged, is no network, or could be larger in memory than it is.
    """
    if find_spec("h5py") is None:
        raise WeightsError(f"weights {path}: files of Keras need h5py: pip install 'densefeat[keras]'")
    with tempfile.TemporaryDirectory() as folder:
        source = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = Path(archive.extract(_KERAS_ENTRY, folder))
        variables = _read_variables(path, source, Path(folder) / "variables.npz")
    dense = dict.fromkeys(layer for layer, name, values in variables if name == "kernel" and values.ndim == 2)
    places = {layer: "classifier" if len(dense) == 1 else f"classifier.{i}" for i, layer in enumerate(dense)}
    tensors: dict[str, torch.Tensor] = {}
    for layer, name, values in variables:
        key = f"{places.get(layer, layer)}.{_NAMES[name]}"
        if key in tensors:
            raise WeightsError(f"weights {path}: several layers are named {shorten_text(layer)!r}: save the network alone")
        tensors[key] = torch.from_numpy(_convert(name, values))
    if not tensors:
        raise WeightsError(
            f"weights {path}: no layers of Keras with names, which files of its first versions 3 lack: save the network as .h5"
        )
    return tensors


def _read_variables(path: Path, source: Path, out: Path) -> list[tuple[str, str, np.ndarray]]:
    """Read layers, variables and values by a process of its own, which a damaged file may keep for ever or end."""
    command = [sys.executable, "-P", str(_READER), str(source.absolute()), str(out)]
    try:
        reader = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"weights {path}: damaged, HDF5's library has not read it in {_PATIENCE} seconds") from error
    if reader.returncode == _REFUSED:
        raise WeightsError(f"weights {path}: {shorten_text(reader.stderr.decode(errors='replace'))}")
    if reader.returncode:
        raise WeightsError(f"weights {path}: truncated or not a checkpoint (HDF5's library cannot read it)")
    with np.load(out, allow_pickle=False) as arrays:
        names = json.loads(arrays["names"].tobytes())
        return [(layer, variable, arrays[str(i)]) for i, (layer, variable) in enumerate(names)]


def _convert(variable: str, values: np.ndarray) -> np.ndarray:
    """Bring a variable into torch's order and type."""
    if variable == "kernel":
        values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
    if variable == "moving_variance":
        values = values.astype(np.float64) + _EPSILON_DIFFERENCE
    return np.ascontiguousarray(values, np.float32)
