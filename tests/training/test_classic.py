"""CIFAR's and SVHN's own files: made as theirs are, hostile, damaged."""

import os
import pickle
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from densefeat import DensefeatError
from densefeat.training import classic
from densefeat.training.classic import read_classic

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RANDOM = np.random.default_rng(0)
PIXELS = np.zeros((32, 32, 3, 1), np.uint8)


def text(value: bytes) -> bytes:
    """A str of Python 2."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def array(values: np.ndarray) -> bytes:
    """An array of uint8, as numpy 1 under Python 2 wrote it."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values.shape) + b"t"
    kind = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\0K\1tR(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + text(b"b") + b"tR"
    return empty + b"(K\1" + shape + kind + b"\x89" + text(values.tobytes()) + b"tb"


def python_2(content: dict[str, Any]) -> bytes:
    """A pickle of protocol 2 with the opcodes of Python 2, which wrote the files that are published."""
    items = b""
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            written = array(value)
        elif isinstance(value, list):
            parts = (text(part.encode()) if isinstance(part, str) else b"J" + struct.pack("<i", part) for part in value)
            written = b"](" + b"".join(parts) + b"e"
        else:
            written = text(value.encode())
        items += text(key.encode()) + written
    return b"\x80\2}(" + items + b"u."


def python_3(content: dict[str, Any]) -> bytes:
    """Pickle as Python 3 does."""
    return pickle.dumps({key.encode(): value for key, value in content.items()}, 2)


def rows(count: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3072), np.uint8)


def write_cifar10(folder: Path, dumps: Callable[[dict[str, Any]], bytes] = python_2) -> dict[str, dict[str, Any]]:
    folder.mkdir()
    files: dict[str, dict[str, Any]] = {"batches.meta": {"num_cases_per_batch": [10000], "label_names": NAMES}}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = RANDOM.integers(0, 10, 4).tolist()
        files[name] = {"batch_label": name, "labels": labels, "data": rows(4), "filenames": ["a.png"] * 4}
    for name, content in files.items():
        (folder / name).write_bytes(dumps(content))
    return files


@pytest.mark.parametrize("dumps", [python_2, python_3])
def test_cifar10(dumps: Callable[[dict[str, Any]], bytes], tmp_path: Path) -> None:
    files = write_cifar10(tmp_path / "c", dumps)
    for train, names in ((True, [f"data_batch_{i}" for i in range(1, 6)]), (False, ["test_batch"])):
        found = read_classic(tmp_path / "c", train)
        assert found is not None
        data = np.concatenate([files[name]["data"] for name in names])
        assert found.images.shape == (4 * len(names), 32, 32, 3)
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
        for channel in range(3):  # of a row: 1,024 red ones, then green, then blue
            assert np.array_equal(found.images[..., channel].reshape(-1, 1024), data[:, 1024 * channel :][:, :1024])
        assert found.labels.tolist() == [label for name in names for label in files[name]["labels"]]
        assert found.classes == NAMES
        assert found.key(3) == f"c/{'train' if train else 'test'}#3"
        assert found.images.flags["C_CONTIGUOUS"]
        assert found.images.flags["WRITEABLE"]  # torch.from_numpy would warn


def test_names_of_bytes_are_text(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "c")
    names = [name.encode() for name in NAMES]
    (tmp_path / "c/batches.meta").write_bytes(python_3({"label_names": names}))
    found = read_classic(tmp_path / "c", train=True)
    assert found is not None
    assert found.classes == NAMES


def test_cifar100_by_its_fine_labels(tmp_path: Path) -> None:
    names = [f"fine {i}" for i in range(100)]
    (tmp_path / "meta").write_bytes(python_2({"fine_label_names": names, "coarse_label_names": ["x"]}))
    for name, labels in (("train", [99, 0, 50]), ("test", [7])):
        content = {"fine_labels": labels, "coarse_labels": [0] * len(labels), "data": rows(len(labels))}
        (tmp_path / name).write_bytes(python_2(content))
    train, test = read_classic(tmp_path, True), read_classic(tmp_path, False)
    assert train is not None
    assert test is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([99, 0, 50], [7])
    assert train.classes == test.classes == names


def write_svhn(path: Path, digits: list[int], shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    """Write a file in the layout of SVHN: images last, digits ``(N, 1)`` with 10 for the digit 0."""
    pixels = RANDOM.integers(0, 256, (*shape, len(digits)), np.uint8)
    savemat(path, {"X": pixels, "y": np.array(digits, np.uint8)[:, None]}, do_compression=True)
    return pixels


def test_svhn(tmp_path: Path) -> None:
    train, extra = write_svhn(tmp_path / "train_32x32.mat", [1, 10, 9]), write_svhn(tmp_path / "extra_32x32.mat", [10, 2])
    test = write_svhn(tmp_path / "test_32x32.mat", [5])
    found, judged = read_classic(tmp_path, True), read_classic(tmp_path, False)
    assert found is not None
    assert judged is not None
    assert found.labels.tolist() == [1, 0, 9, 0, 2]
    assert all(np.array_equal(found.images[i], train[..., i]) for i in range(3))
    assert all(np.array_equal(found.images[3 + i], extra[..., i]) for i in range(2))
    assert np.array_equal(judged.images[0], test[..., 0])
    assert found.classes == [str(digit) for digit in range(10)]


def test_svhn_without_extra(tmp_path: Path) -> None:
    write_svhn(tmp_path / "train_32x32.mat", [1])
    write_svhn(tmp_path / "test_32x32.mat", [5])
    with pytest.raises(DensefeatError, match=r"extra_32x32\.mat missing$"):
        read_classic(tmp_path, True)
    assert read_classic(tmp_path, False) is not None


def test_other_folders_are_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()  # a folder of classes
    (tmp_path / "data_batch_1").write_bytes(b"")
    assert read_classic(tmp_path, True) is None


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


class Reduced:
    """Pickles as ``function(*arguments)`` with a state."""

    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.reduced = function, arguments, state

    def __reduce__(self) -> tuple:
        return self.reduced


def addresses(kind: str, fields: object = None, names: object = None) -> Reduced:
    """An array whose bytes its type calls addresses of objects: numpy would follow them."""
    dtype = Reduced(np.dtype, (kind, False, True), (3, "|", None, names, fields, 8 if fields else -1, 1 if fields else -1, 0))
    return Reduced(np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (384,), dtype, False, b"A" * 3072))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    write_cifar10(tmp_path / "c")
    hostile = pickle.dumps({"data": Runs(f"touch {tmp_path}/ran"), "labels": [0]}, protocol)
    for name in ("data_batch_3", "batches.meta"):
        (tmp_path / "c" / name).write_bytes(hostile)
        with pytest.raises(DensefeatError, match=r"names (posix|nt)\.system is not read: it could run anything$"):
            read_classic(tmp_path / "c", True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [addresses("O"), addresses("V8", {"a": (np.dtype("O"), 0)}, ("a",))],
    ids=["objects", "objects inside"],
)
def test_bytes_are_never_addresses(data: Reduced, tmp_path: Path) -> None:
    write_cifar10(tmp_path / "c")
    (tmp_path / "c/test_batch").write_bytes(pickle.dumps({"data": data, "labels": [0]}, 2))
    with pytest.raises(DensefeatError, match="not a CIFAR file: an array of anything but bytes"):
        read_classic(tmp_path / "c", False)


def whole(**changes: object) -> dict[str, Any]:
    return {"data": rows(4), "labels": [0, 1, 2, 9]} | changes


def nest(levels: int) -> list:
    """Make lists in lists that print as very many items and are few."""
    return [0, 1, 2, 3] if levels == 0 else [nest(levels - 1)] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", python_2(whole())[:-700], "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", b"", "data_batch_2': not a CIFAR file: EOFError"),
        ("data_batch_2", b"<html>", "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", python_2(whole(labels=[0, 1, 2, 10])), "c/train: labels from 0 to 10, 10 classes: damaged files"),
        ("data_batch_2", python_2(whole(labels=[0, 1, 2, -1])), "c/train: labels from -1 to 9, 10 classes: damaged files"),
        ("data_batch_2", python_2(whole(labels=[0, 1, 2])), "c/train: 20 images, 19 labels: damaged files"),
        ("data_batch_2", python_2(whole(data=rows(4)[:, 1:])), "data_batch_2': not a CIFAR file: cannot reshape"),
        ("data_batch_2", python_3(whole(data=rows(4) / 255)), "data_batch_2': not a CIFAR file: an array of anything but bytes"),
        ("data_batch_2", python_3(whole(data=np.asfortranarray(rows(4)))), "not a CIFAR file: an array of anything but bytes"),
        ("data_batch_2", python_3(whole(data=[[256] * 3072] * 4)), "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", python_3(whole(labels=["a"] * 4)), "data_batch_2': not a CIFAR file: 'str' object cannot be interpreted as an integer"),
        ("data_batch_2", python_3(whole(labels=[2**70] * 4)), "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", python_2({"labels": [1]}), "data_batch_2': not a CIFAR file: 'data'"),
        ("data_batch_2", pickle.dumps([1, 2], 2), "data_batch_2': not a CIFAR file: "),
        ("batches.meta", python_2({"names": NAMES}), "batches.meta': not a CIFAR file: 'label_names' is no list of names"),
        ("batches.meta", python_3({"label_names": 3}), "batches.meta': not a CIFAR file: 'label_names' is no list of names"),
        ("batches.meta", python_2({"label_names": NAMES[:5]}), "c/train: labels from 0 to 9, 5 classes: damaged files"),
        # numbers that let C's unpickler allocate what they say, and lists whose items are one another
        ("data_batch_2", b"\x80\x02Nr\xff\xff\xff\x7f", "data_batch_2': not a CIFAR file: EOFError"),
        ("data_batch_2", b"\x80\x02Nr\xff\xff\xff\x7f.", "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", b"\x80\x05\x96" + b"\xff" * 4 + bytes(4) + b".", "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "data_batch_2': not a CIFAR file: "),
        ("data_batch_2", python_3(whole(labels=nest(30))), "data_batch_2': not a CIFAR file: 'list' object cannot be interpr"),
        ("batches.meta", python_3({"label_names": nest(30)}), "batches.meta': not a CIFAR file: 'label_names' is no list of na"),
        ("batches.meta", b"\x80\x02" + b"(" * 10**6, "batches.meta': not a CIFAR file: "),
    ],
)  # fmt: skip
def test_damaged_cifar(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path / "c", lambda content: python_2(content | ({"labels": [0, 9, 1, 2]} if "labels" in content else {})))
    (tmp_path / "c" / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DensefeatError, match=re.escape(message)) as raised:
        read_classic(tmp_path / "c", True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_no_images(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "c")
    (tmp_path / "c/data_batch_4").unlink()
    with pytest.raises(DensefeatError, match=r"data_batch_4': not a CIFAR file: .*No such file"):
        read_classic(tmp_path / "c", True)
    (tmp_path / "c/test_batch").write_bytes(python_2({"data": rows(0), "labels": []}))
    with pytest.raises(DensefeatError, match="c/test: 0 images, 0 labels: damaged files"):
        read_classic(tmp_path / "c", False)


def test_a_file_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "c")
    monkeypatch.setattr(classic, "_MAX_BYTES", 1000)
    with pytest.raises(DensefeatError, match=r"test_batch': 12,\d+ bytes are more than the limit of 1,000"):
        read_classic(tmp_path / "c", False)


def test_both_training_files_of_svhn_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "extra", "test"):
        write_svhn(tmp_path / f"{name}_32x32.mat", [1, 2])
    monkeypatch.setattr(classic, "_MAX_BYTES", 3 * 3072)
    with pytest.raises(
        DensefeatError, match=r"extra_32x32.mat': not an SVHN file: X .* has 6,144 bytes: at most 3,072 are read"
    ):
        read_classic(tmp_path, True)
    monkeypatch.setattr(classic, "_MAX_BYTES", 4 * 3072)
    assert len(read_classic(tmp_path, True).labels) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "test_32x32.mat': not an SVHN file: "),
        (lambda path: path.write_bytes(b"no MATLAB file at all" * 20), "test_32x32.mat': not an SVHN file: "),
        (lambda path: path.write_bytes(b""), "test_32x32.mat': not an SVHN file: "),
        (lambda path: savemat(path, {"y": np.ones((2, 1))}), "test_32x32.mat': not an SVHN file: 'X'"),
        (lambda path: write_svhn(path, [1, 2], (16, 64, 3)), "not an SVHN file: X of shape (16, 64, 3, 2)"),
        (lambda path: write_svhn(path, [1, 2], (32, 32, 4)), "not an SVHN file: X of shape (32, 32, 4, 2)"),
        (lambda path: write_svhn(path, [1, 11]), "not an SVHN file: y holds 11, which is no digit"),
        (lambda path: savemat(path, {"X": PIXELS, "y": [np.nan]}), "not an SVHN file: y holds nan, which is no digit"),
        (lambda path: savemat(path, {"X": PIXELS, "y": [1, 2]}), "test: 1 images, 2 labels: damaged files"),
        (lambda path: savemat(path, {"X": PIXELS / 255, "y": [1]}), "X of shape (32, 32, 3, 1) and type float64"),
    ],
)
def test_damaged_svhn(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write_svhn(tmp_path / "test_32x32.mat", [1, 2])
    change(tmp_path / "test_32x32.mat")
    with pytest.raises(DensefeatError, match=re.escape(message)):
        read_classic(tmp_path, False)
