"""A program that reads the layers in Keras' HDF5 files: ``python hdf5_reader.py FILE OUT``; the package does not import it.

HDF5's library takes for ever over some damaged files and ends the process over others, so that it has a process of its own.
OUT becomes numpy's ``.npz``: ``names``, JSON of ``[layer, variable]`` in the order of the arrays ``0``, ``1``, …
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

_REFUSED = 3  # exit code; the reason is on stderr
_MAX_ENTRIES = 2**16
_FREE_MEMORY = 2**33  # bytes of addresses, of which numpy alone takes some gigabytes
_VARIABLES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
_NUMBERED = {1: ("kernel",), 2: ("kernel", "bias"), 4: _VARIABLES[2:]}  # the layers of Keras 3 number theirs
_FIRST_NAMES = re.compile(r"(?:.*/)?conv1/(conv|bn)")  # conv1/conv, as Keras 2 named conv1_conv


def main(path: str, out: str) -> None:
    """Write the variables of the file ``path`` to ``out``; memory is bounded where the system can."""
    with suppress(ImportError):
        import resource  # not on Windows

        bound = _FREE_MEMORY + 4 * os.path.getsize(path)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    with h5py.File(path, "r") as file:
        variables = list(_list_variables(file))
    names = json.dumps([[layer, name] for layer, name, _ in variables]).encode()
    arrays = {str(i): values for i, (_, _, values) in enumerate(variables)}
    np.savez(out, names=np.frombuffer(names, np.uint8), **arrays)  # type: ignore[arg-type]


def _list_variables(file: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """List layer, variable and values of everything in the file but an optimiser's state."""
    entries: list[str] = []
    file.visit(entries.append)  # along hard links: what the file holds itself
    if len(entries) > _MAX_ENTRIES:
        _refuse(f"{len(entries):,} entries are too many for a network")
    for entry in entries:
        if entry.startswith("optimizer") or not isinstance(file[entry], h5py.Dataset):
            continue
        group, _, variable = entry.rpartition("/")
        variable = variable.removesuffix(":0")
        if variable.isdecimal():
            layer = file[group].attrs.get("name")
            numbered = _NUMBERED.get(len(file[group]), ())
            if not isinstance(layer, str) or int(variable) >= len(numbered):
                continue
            variable = numbered[int(variable)]
        else:
            first = _FIRST_NAMES.fullmatch(group)
            layer = f"conv1_{first[1]}" if first else group.rpartition("/")[2]
        if variable in _VARIABLES:
            yield layer, variable, _read_values(file[entry])


def _read_values(dataset: Any) -> np.ndarray:
    """Read a data set whose numbers are in the file as they are; others are refused: they may be of any size."""
    stored = dataset.id.get_storage_size() == dataset.nbytes
    if dataset.dtype.kind != "f" or dataset.external or dataset.is_virtual or not stored:
        _refuse(f"{dataset.name} is compressed, elsewhere than in the file, or not of floats: save it again")
    return np.asarray(dataset[()], np.float32)


def _refuse(reason: str) -> None:
    sys.stderr.write(reason)
    sys.exit(_REFUSED)


if __name__ == "__main__":
    main(*sys.argv[1:])
