"""Read networks that torch.save pickled whole, as modules, by an unpickler that knows tensors and names alone.

Nothing that a pickle names is imported or called. A tensor becomes a note of where its numbers are in the file; every other
class or function becomes a stand-in, which keeps the state that it is given and does nothing. Of the stand-ins only those that
have a module's state are looked at, and of these only parameters, buffers and inner modules.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any

import torch

from densefeat.errors import WeightsError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of files that torch wrote before 1.6
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_DEPTH, _MAX_LEVELS, _MAX_DIMENSIONS = 64, 4, 8
_MAX_VALUES = 2**18  # modules, tensors and others that are looked at: a file may name one value any number of times


@dataclass(frozen=True)
class PickledModules:
    """The content of a file of pickled modules: mappings of tensors in their places, and the class of the first module."""

    entries: Mapping[str, Any]
    class_name: str


class _StandIn:
    """A stand-in for a class or function of another program. ``path``: its name; ``state``: what the pickle gave it."""

    path = ""
    state: Any = None

    def __new__(cls, *_: object, **__: object) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


class _Mapping(dict):
    """An OrderedDict, without attributes."""

    def __setstate__(self, _: object) -> None:
        pass


class _Tensor:
    """A tensor: its storage, and where in it."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, _: object) -> None:
        pass


class _Parameter:
    """A parameter, which is the tensor that it is made of."""

    def __new__(cls, data: Any = None, *_: object) -> Any:
        return data

    def __setstate__(self, _: object) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    """Numbers of a file: ``count`` of one type from ``start`` on, under a key."""

    dtype: torch.dtype
    key: str
    start: int
    count: int

    def __setstate__(self, _: object) -> None:
        pass


_KNOWN: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.nn.parameter", "Parameter"): _Parameter,
    ("torch.autograd.variable", "Variable"): _Parameter,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class _Unpickler(pickle._Unpickler):  # the one in Python, whose memory a file cannot inflate
    def __init__(self, file: IO[bytes] | mmap) -> None:
        super().__init__(file, encoding="latin1")
        self._stand_ins: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> type:
        """Give the class that stands for a name."""
        key = module, name
        if key not in _KNOWN and key not in self._stand_ins:
            dtype = _DTYPES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None
            self._stand_ins[key] = type("StandIn", (_StandIn,), {"path": f"{module}.{name}", "dtype": dtype})
        return _KNOWN.get(key) or self._stand_ins[key]

    def get_extension(self, code: int) -> None:
        """Refuse numbers in place of names: what they stand for depends on the program."""
        raise pickle.UnpicklingError(f"extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Give a storage, or the class of a module, beside which old files keep its source."""
        if pid[0] == "module":
            return pid[1]
        kind, storage_type, key, _, count, *view = pid
        dtype = getattr(storage_type, "dtype", None)
        if kind != "storage" or dtype is None:
            raise pickle.UnpicklingError("storages of unknown numbers")
        start, count = (view[0][1], view[0][2]) if view and view[0] is not None else (0, count)
        return _Storage(dtype, str(key), start, count)


def read_pickled_modules(path: Path, is_archive: bool) -> PickledModules | None:
    """Read the modules in a file of ``torch.save``; None where it holds none. ``is_archive``: it is a zip, and not compressed.

    Raises WeightsError for tensors that are not in the file; errors of many types for a damaged one.
    """
    with ExitStack() as stack:
        if is_archive:
            content, load = _open_archive(stack.enter_context(zipfile.ZipFile(path)))
        else:
            file = stack.enter_context(open(path, "rb"))
            content, load = _open_old_file(stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ)))
        reader = _ModuleReader(path, load)
        entries = reader.convert(content)
        if not reader.classes:
            return None
        return PickledModules({"state_dict": entries} if _is_module(content) else entries, reader.classes[0])


def _open_archive(archive: zipfile.ZipFile) -> tuple[Any, Callable[[_Storage], bytearray]]:
    """Unpickle an archive; return the content, and a function that reads the bytes of a storage."""
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    root = next(name for name in sizes if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("written on a machine of another byte order")
    with archive.open(f"{root}data.pkl") as file:
        content = _Unpickler(file).load()
    return content, lambda storage: bytearray(archive.read(f"{root}data/{storage.key}"))


def _open_old_file(file: mmap) -> tuple[Any, Callable[[_Storage], bytearray]]:
    """Unpickle a file as torch wrote it before 1.6: pickles, and after them the storages in the order of their keys.

    ``file``: in memory, where a read of more than there is takes no more.
    """
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL or not system["little_endian"]:
        raise pickle.UnpicklingError("not of torch, or written on a machine of another byte order")
    unpickler = _Unpickler(file)
    storages: dict[str, _Storage] = {}
    load_persistent = unpickler.persistent_load

    def remember(pid: Any) -> Any:
        found = load_persistent(pid)
        if isinstance(found, _Storage):
            storages[found.key] = found
        return found

    unpickler.persistent_load = remember  # type: ignore[method-assign]
    content = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, _Unpickler(file).load()):
        length = int.from_bytes(file.read(8), "little") * storages[key].dtype.itemsize
        places[key] = file.tell(), length
        if file.tell() + length > len(file):
            raise pickle.UnpicklingError("truncated")
        file.seek(length, 1)

    def load(storage: _Storage) -> bytearray:
        place, length = places[storage.key]
        file.seek(place)
        return bytearray(file.read(length))

    return content, load


def _is_module(value: object) -> bool:
    state = value.state if isinstance(value, _StandIn) else None
    return isinstance(state, dict) and isinstance(state.get("_modules"), dict)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


class _ModuleReader:
    """A converter of stand-ins to mappings of tensors. ``classes``: the names of the modules' classes, in order."""

    def __init__(self, path: Path, load: Callable[[_Storage], bytearray]) -> None:
        self.classes: list[str] = []
        self._path, self._load = path, load
        self._storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._left = _MAX_VALUES

    def convert(self, value: Any, levels: int = _MAX_LEVELS) -> Any:
        """Replace modules by their tensors, by name, also inside mappings and lists; drop all other stand-ins."""
        self._count()
        if _is_module(value):
            self.classes.append(value.path)
            tensors: dict[str, torch.Tensor] = {}
            self._collect(value, "", tensors, _MAX_DEPTH)
            return tensors
        if isinstance(value, _Tensor):
            return self._make_tensor(value, "")
        if isinstance(value, dict) and levels:
            return {str(key): self.convert(inner, levels - 1) for key, inner in value.items()}
        if isinstance(value, list | tuple) and levels:
            return [self.convert(inner, levels - 1) for inner in value]
        return value if isinstance(value, str | int | float) else None

    def _collect(self, module: _StandIn, prefix: str, tensors: dict[str, torch.Tensor], depth: int) -> None:
        """Collect a module's tensors as ``Module.state_dict`` names them."""
        self._count()
        if not depth:
            raise WeightsError(f"weights {self._path}: its modules are nested too deeply")
        state = module.state
        absent = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in state.get(kind, {}).items():
                if isinstance(value, _Tensor) and name not in absent:
                    tensors[f"{prefix}{name}"] = self._make_tensor(value, f"{prefix}{name}")
        for name, inner in state["_modules"].items():
            if _is_module(inner):
                self._collect(inner, f"{prefix}{name}.", tensors, depth - 1)

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            raise WeightsError(f"weights {self._path}: more than {_MAX_VALUES:,} modules, tensors and other values")

    def _make_tensor(self, tensor: _Tensor, name: str) -> torch.Tensor:
        """Make a tensor of the file's bytes. Raises WeightsError unless each of its numbers is there, and only once."""
        self._count()
        storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
        if not (
            isinstance(storage, _Storage)
            and isinstance(size, tuple)
            and isinstance(stride, tuple)
            and len(size) == len(stride) <= _MAX_DIMENSIONS
            and all(map(_is_count, (storage.start, storage.count, offset, *size, *stride)))
        ):
            raise WeightsError(f"weights {self._path}: {name!r} is no tensor that can be read")
        numbers = self._read_storage(storage)[storage.start : storage.start + storage.count]
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last >= len(numbers) or count > len(numbers)):
            raise WeightsError(f"weights {self._path}: {name!r} {tuple(size)} is larger than its numbers in the file")
        return torch.as_strided(numbers, size, stride, offset) if count else torch.empty(size, dtype=storage.dtype)

    def _read_storage(self, storage: _Storage) -> torch.Tensor:
        key = storage.key, storage.dtype
        if key not in self._storages:
            data = self._load(storage)
            empty = torch.empty(0, dtype=storage.dtype)
            self._storages[key] = torch.frombuffer(data, dtype=storage.dtype) if data else empty
        return self._storages[key]
