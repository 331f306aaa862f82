"""Read checkpoint files, safetensors and torch's, without running what is in them."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from densefeat.base import check_tensors, describe_error, shorten_text
from densefeat.errors import DensefeatError, WeightsError
from densefeat.nets.keras_file import is_keras_file, read_keras_file
from densefeat.nets.key_layouts import rank_averaged
from densefeat.nets.pickled_modules import PickledModules, read_pickled_modules

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


@dataclass(frozen=True)
class Checkpoint:
    """The model's tensors in a checkpoint file, under the file's own keys, and what else the file says of them.

    ``metadata``: of a safetensors file. ``class_name``: of a network that was pickled whole.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    class_name: str

    def has_key(self, end: str) -> bool:
        """Check whether a tensor's name is ``end``, with or without a prefix."""
        return any(f".{key}".endswith(f".{end}") for key in self.tensors)


@dataclass(frozen=True)
class _Content:
    """Everything in a checkpoint file; see :class:`Checkpoint`."""

    entries: Mapping[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    class_name: str = ""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file of torch, safetensors or Keras. Raises WeightsError."""
    content = _read_content(path)
    return Checkpoint(path, find_tensors(content.entries, f"weights {path}"), content.metadata, content.class_name)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the model's tensors in a checkpoint file, under the file's own keys. Raises WeightsError."""
    return read_checkpoint(path).tensors


def read_checkpoint_records(path: Path) -> dict[str, Any]:
    """Read what a checkpoint file holds beside tensors, by its keys: arguments, classes, … Raises WeightsError."""
    return {
        str(key): value
        for key, value in _read_content(path).entries.items()
        if not isinstance(value, torch.Tensor) and key not in _CONTAINERS and rank_averaged([str(key)]) is None
    }


def _read_content(path: Path) -> _Content:
    """Read a checkpoint file, whose format is found from its first bytes. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    title = f"weights {path}"
    with _damage_errors(title):
        start = _read_start(path)
        is_archive = start.startswith(_ZIP_MAGIC)
        if start[8:] == b"{" and not is_archive:
            check_tensors(path, title)
            with safe_open(path, "pt") as file:
                return _Content({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
        if is_keras_file(path):
            if is_archive:
                _check_archive(path, title)
            return _Content(read_keras_file(path))
    try:
        content = load_torch_file(path, title)
    except WeightsError:
        modules = _read_modules(path, is_archive)
        if modules is None:
            raise
        return _Content(modules.entries, class_name=modules.class_name)
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(content).__name__}, not a state dict")
    return _Content(content)


def _read_modules(path: Path, is_archive: bool) -> PickledModules | None:
    """Read networks that were pickled whole; None for every other file that torch refuses, damaged ones among them."""
    try:
        if is_archive:
            _check_archive(path, f"weights {path}")
        return read_pickled_modules(path, is_archive)
    except WeightsError:
        raise
    except Exception:  # the refusal says more than an error of one of many types
        return None


@contextmanager
def _damage_errors(title: str) -> Iterator[None]:
    """Turn whatever the readers raise for damaged files into a WeightsError."""
    try:
        yield
    except DensefeatError:
        raise
    except Exception as error:
        raise WeightsError(f"{title}: {_describe_damage(error)}") from error


def _read_start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(9)


def load_torch_file(path: Path, title: str) -> Any:
    """Load what torch saved, tensors to the CPU, without running what is in it. A compressed archive is refused.

    Raises WeightsError, which begins with ``title``.
    """
    try:
        if _read_start(path).startswith(_ZIP_MAGIC):
            _check_archive(path, title)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on unusual pickles, which load or are refused below
            with torch.serialization.safe_globals(_list_harmless_globals()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # damaged files make torch raise errors of many types
        raise WeightsError(f"{title}: {describe_refusal(error) or _describe_damage(error)}") from error


def describe_refusal(error: Exception) -> str | None:
    """Say why torch refused a file that it can read only by running its code; None for another error of ``torch.load``.

    Torch's own words are not repeated: they say how to run the code.
    """
    if isinstance(error, pickle.UnpicklingError):
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"its pickle holds more than tensors ({shorten_text(match[1])})"
            return f"refused, {what}, which would run as code; save the state dict alone, best as safetensors"
        return "neither safetensors nor a torch checkpoint that can be read safely"
    if "weights_only" in str(error):
        return "refused, TorchScript or an archive of torch before 0.4, which would run as code; save the state dict alone"
    return None


def _describe_damage(error: Exception) -> str:
    return f"truncated or not a checkpoint ({type(error).__name__}: {describe_error(error)})"


def _check_archive(path: Path, title: str) -> None:
    """Refuse compressed archives, which torch.save never writes and which could unpack to any size, and damaged ones.

    torch.load does not look at the archive's checksums. They are 0 where torch.save was set to compute none.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > path.stat().st_size:
            raise WeightsError(
                f"{title}: refused, a compressed archive ({path.stat().st_size:,} bytes that unpack to {unpacked:,})"
            )
        try:
            for entry in entries:
                with archive.open(entry) as file:
                    while entry.CRC and file.read(_PIECE):  # zipfile compares at the end
                        pass
        except zipfile.BadZipFile as error:
            raise WeightsError(f"{title}: damaged ({error}): fetch or copy it again") from error


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
