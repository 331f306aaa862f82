"""Read the files that CIFAR and SVHN are published in, as torchvision unpacks them, without running code in a pickle."""

import io
import pickle
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from densefeat.base import describe_error
from densefeat.errors import DensefeatError, UsageError
from densefeat.labels import Task
from densefeat.training.mat_file import read_matrices

_MAX_BYTES = 2**31  # of a file, and of SVHN's images unpacked, which have 1.9 GB in both files for training
_MAX_LABEL_BYTES = 2**24  # of SVHN's digits, which are written as float64
_CIFAR = {  # marker file: training files, test files, key of the labels, file and key of the class names
    "data_batch_1": ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "labels", "batches.meta", "label_names"),
    "train": (["train"], ["test"], "fine_labels", "meta", "fine_label_names"),
}
_SVHN = {True: ["train_32x32.mat", "extra_32x32.mat"], False: ["test_32x32.mat"]}


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images, uint8 ``(N, H, W, 3)``, with labels, int64 ``(N,)``, which are places in ``classes``."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    task: Task = "single"

    def key(self, position: int) -> str:
        return f"{self.name}#{position}"


def read_classic(folder: Path, train: bool) -> DecodedImages | None:
    """Read the images in a folder of CIFAR's Python files or SVHN's .mat files; None where it has neither.

    SVHN's training images are its train and extra files together, as in the papers. Raises DensefeatError for a damaged file.
    """
    for marker, (train_files, test_files, labels_key, meta, names_key) in _CIFAR.items():
        if (folder / marker).is_file() and (folder / meta).is_file():
            parts = [_read_cifar(folder / name, labels_key) for name in (train_files if train else test_files)]
            names = _read_names(folder / meta, names_key)
            return _join_files(f"{folder.name}/{'train' if train else 'test'}", parts, names)
    if (folder / _SVHN[False][0]).is_file():
        files = [folder / name for name in _SVHN[train]]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UsageError(f"{str(folder)!r}: {', '.join(missing)} missing")
        parts, left = [], _MAX_BYTES
        for file in files:
            parts.append(_read_svhn(file, left))
            left -= parts[-1][0].nbytes
        return _join_files(f"{folder.name}/{'train' if train else 'test'}", parts, [str(digit) for digit in range(10)])
    return None


def _join_files(name: str, parts: list[tuple[np.ndarray, np.ndarray]], classes: list[str]) -> DecodedImages:
    """Join the images and labels of several files. Raises DensefeatError where labels do not match images and classes."""
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(images) != len(labels) or not len(labels):
        raise DensefeatError(f"{name}: {len(images)} images, {len(labels)} labels: damaged files")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DensefeatError(f"{name}: labels from {labels.min()} to {labels.max()}, {len(classes)} classes: damaged files")
    return DecodedImages(name, images, labels, classes)


def _read_cifar(path: Path, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    try:
        pixels = content["data"].array.reshape(-1, 3, 32, 32)
        labels = np.array([index(label) for label in content[labels_key]], np.int64)  # lists in lists could share their items
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels
    except Exception as error:  # other content raises errors of many kinds
        raise DensefeatError(f"{str(path)!r}: not a CIFAR file: {describe_error(error)}") from error


def _read_names(path: Path, key: str) -> list[str]:
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DensefeatError(f"{str(path)!r}: not a CIFAR file: {key!r} is no list of names")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]


def _read_svhn(path: Path, max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = read_matrices(path, {"X": max_bytes, "y": _MAX_LABEL_BYTES})
        pixels, digits = content["X"], content["y"].ravel()
        if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or pixels.ndim != 4:
            raise ValueError(f"X of shape {pixels.shape} and type {pixels.dtype}")
        if (others := digits[~np.isin(digits, range(11))]).size:
            raise ValueError(f"y holds {others[0]}, which is no digit")
        digits = digits.astype(np.int64) % 10  # its files write 10 for the digit 0
        return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), digits
    except Exception as error:  # a damaged file can raise errors of many kinds
        raise DensefeatError(f"{str(path)!r}: not an SVHN file: {describe_error(error)}") from error


def _read_bounded(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise DensefeatError(f"{str(path)!r}: {size:,} bytes are more than the limit of {_MAX_BYTES:,}")
    return path.read_bytes()


def _unpickle(path: Path) -> dict[str, Any]:
    """Load the dictionary in one of CIFAR's files. Raises DensefeatError for a pickle with anything but plain arrays."""
    try:
        content = ArraysOnly(io.BytesIO(_read_bounded(path))).load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except DensefeatError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DensefeatError(f"{str(path)!r}: not a CIFAR file: {describe_error(error)}") from error


class PickledType:
    """A stand-in for numpy's dtype, whose state could declare bytes to be addresses of objects: it only keeps the name."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class PickledArray:
    """A stand-in for numpy's ndarray. ``array``: uint8, of the shape that the pickle states."""

    array: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, in_columns, data = state
        if not isinstance(kind, PickledType) or kind.name != "u1" or in_columns:
            raise ValueError("an array of anything but bytes, row by row")
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 writes text
        self.array = np.frombuffer(data, np.uint8).reshape(shape)


class ArraysOnly(pickle._Unpickler):
    """An unpickler that loads arrays of bytes, lists, texts and numbers, and refuses every other name.

    It is the one written in Python: the one in C allocates what a number in the file says, as the code left out here does.
    """

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}  # noqa: RUF012

    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): PickledType,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode(encoding)
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise DensefeatError(f"a pickle that names {module}.{name} is not read: it could run anything") from None
