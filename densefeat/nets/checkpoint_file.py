"""Read checkpoint files, safetensors and torch's, without running what is in them."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from densefeat.base import check_tensors, describe_error
from densefeat.errors import WeightsError
from densefeat.nets.key_layouts import rank_averaged

# Keys under which training programs put a model into a checkpoint; averaged weights, which have names of their own, come first.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_AVERAGED_LEVELS = 4  # of mappings, in which averaged weights are looked for: "callbacks", "EMA", "state", "module"
_ZIP_MAGIC = b"PK\x03\x04"
_PIECE = 2**20  # bytes read at a time


class _Discarded:
    """A stand-in, which keeps nothing and runs nothing, for what a training program saved beside the tensors."""

    def __new__(cls, *_: object) -> "_Discarded":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# What the pickle of a checkpoint may name besides tensors: a Namespace runs no code, and all others are not made at all.
_HARMLESS: dict[str, type] = {"argparse.Namespace": argparse.Namespace} | dict.fromkeys(
    (
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "numpy.dtype",
        "numpy.ndarray",
        *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    ),
    _Discarded,
)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the model's tensors in a checkpoint file, under the file's own keys. Raises WeightsError."""
    return find_tensors(_read_checkpoint(path), f"weights {path}")


def read_checkpoint_records(path: Path) -> dict[str, Any]:
    """Read what a checkpoint file holds beside tensors, by its keys: arguments, classes, … Raises WeightsError."""
    return {
        str(key): value
        for key, value in _read_checkpoint(path).items()
        if not isinstance(value, torch.Tensor) and key not in _CONTAINERS and rank_averaged([str(key)]) is None
    }


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint file, whose format is found from its first bytes. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{" and not start.startswith(_ZIP_MAGIC):
            check_tensors(path, f"weights {path}")
            return safetensors.torch.load_file(path)
        if start.startswith(_ZIP_MAGIC):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on unusual pickles, which load or are refused below
            with torch.serialization.safe_globals(_list_harmless_globals()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"weights {path}: refused, its pickle holds more than tensors ({match.group(1)}), which"
                " would run as code; save the state dict alone, best as safetensors"
            ) from error
        raise WeightsError(f"weights {path}: neither safetensors nor a torch checkpoint that can be read safely") from error
    except WeightsError:
        raise
    except Exception as error:  # damaged files make the readers raise errors of many types
        raise WeightsError(
            f"weights {path}: truncated or not a checkpoint ({type(error).__name__}: {describe_error(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(content).__name__}, not a state dict")
    return content


def _check_archive(path: Path) -> None:
    """Refuse compressed archives, which torch.save never writes and which could unpack to any size, and damaged ones.

    torch.load does not look at the archive's checksums. They are 0 where torch.save was set to compute none.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > path.stat().st_size:
            raise WeightsError(
                f"weights {path}: refused, a compressed archive ({path.stat().st_size:,} bytes that unpack to {unpacked:,})"
            )
        try:
            for entry in entries:
                with archive.open(entry) as file:
                    while entry.CRC and file.read(_PIECE):  # zipfile compares at the end
                        pass
        except zipfile.BadZipFile as error:
            raise WeightsError(f"weights {path}: damaged ({error}): fetch or copy it again") from error


def _list_harmless_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """List what torch may read, with the names in the pickle, apart from what the program allowed itself."""
    allowed = [entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
               for entry in torch.serialization.get_safe_globals()]  # fmt: skip
    return [(kind, name) for name, kind in _HARMLESS.items() if name not in allowed]


def find_tensors(content: Mapping[Any, Any], title: str) -> dict[str, torch.Tensor]:
    """Take the model's tensors, under their own keys, out of a checkpoint; averaged ones, also nested, come first.

    Raises WeightsError, which begins with ``title``, where several entries could be the model, and where averaged
    weights have no names.
    """
    if averaged := _find_averaged(content, title):
        return averaged
    inner = {
        key: tensors for key, value in content.items() if isinstance(value, Mapping) and (tensors := _select_tensors(value))
    }
    known = [key for key in _CONTAINERS if key in inner]
    own = _select_tensors(content)
    if known:
        return inner[known[0]]
    if own or not inner:
        return own
    if len(inner) > 1:
        raise _refuse_several(inner, title)
    return next(iter(inner.values()))


def _find_averaged(content: Mapping[Any, Any], title: str) -> dict[str, torch.Tensor]:
    """Find the tensors of averaged weights in a checkpoint and the mappings in it; none where there are no such weights."""
    entries = [(rank, path, value) for path, value in _walk(content, _AVERAGED_LEVELS) if (rank := rank_averaged(path))]
    named = [
        (rank, path, tensors)
        for rank, path, value in entries
        if isinstance(value, Mapping) and (tensors := _select_tensors(value))
    ]
    if named:
        first = min(rank for rank, _, _ in named)
        best = {path: tensors for rank, path, tensors in named if rank == first}
        if len(best) > 1:
            raise _refuse_several([".".join(path) for path in best], title)
        return next(iter(best.values()))
    for _, path, value in entries:
        if _holds_unnamed_tensors(value):
            raise WeightsError(
                f"{title}: {'.'.join(path)!r} holds averaged weights as tensors without names, which cannot be told apart:"
                " save the state dict of the averaged network alone, or that of the other"
            )
    return {}


def _walk(content: Mapping[Any, Any], levels: int, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Go through the entries of nested mappings, each with the keys that lead to it."""
    for key, value in content.items():
        inner = (*path, str(key))
        yield inner, value
        if isinstance(value, Mapping) and levels > 1:
            yield from _walk(value, levels - 1, inner)


def _holds_unnamed_tensors(value: object) -> bool:
    """Check for a list of tensors, or a mapping of them by number; single numbers are no weights."""
    if isinstance(value, Mapping):
        values = [tensor for key, tensor in value.items() if not isinstance(key, str)]
    else:
        values = list(value) if isinstance(value, list | tuple) else []
    return any(isinstance(tensor, torch.Tensor) and tensor.ndim for tensor in values)


def _refuse_several(keys: Iterable[object], title: str) -> WeightsError:
    return WeightsError(f"{title}: which of {', '.join(map(repr, keys))} is the network? Save that state dict alone")


def _select_tensors(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Select the tensors with a name, without torch's counters of averaged models; none where all are single numbers."""
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor) and key.rpartition(".")[2] != "n_averaged"
    }
    return tensors if any(tensor.ndim for tensor in tensors.values()) else {}
