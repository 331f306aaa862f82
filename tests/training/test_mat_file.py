"""MATLAB 5 files: matrices as scipy writes them, and files that claim what they do not hold."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from densefeat.training.mat_file import read_matrices

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
LIMIT = {"X": 2**20}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_what_scipy_writes_is_read(kind: str, compressed: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(kind)
    names = {"text": "abc", "X": values, "other": np.ones((2, 2)), "y": np.array([[7]], kind)}
    savemat(tmp_path / "a.mat", names, do_compression=compressed)
    found = read_matrices(tmp_path / "a.mat", {"X": values.nbytes, "y": 8})
    assert list(found) == ["X", "y"]
    assert found["X"].dtype == values.dtype
    assert np.array_equal(found["X"], values)
    assert found["y"].tolist() == [[7]]


def element(kind: int, data: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if claimed is None else claimed) + data + bytes(-len(data) % 8)


def matrix(
    shape: tuple[int, ...], data: bytes, name: bytes = b"X", number: int = 2, flags: int = 9, claimed: int | None = None
) -> bytes:
    """Make a matrix of bytes (class 9, numbers of type 2); ``claimed``: the size that its data state."""
    parts = element(6, struct.pack("<II", flags, 0)), element(5, struct.pack(f"<{len(shape)}i", *shape)), element(1, name)
    return element(14, b"".join(parts) + element(number, data, claimed))


def packed(content: bytes, keep: int | None = None) -> bytes:
    data = zlib.compress(content)[:keep]
    return struct.pack("<II", 15, len(data)) + data


def test_numbers_in_fewer_bytes_than_their_class(tmp_path: Path) -> None:
    """MATLAB stores whole float64 numbers as bytes, and SVHN's digits are written so."""
    (tmp_path / "a.mat").write_bytes(HEADER + packed(matrix((3, 1), bytes([1, 10, 2]), flags=6)))
    found = read_matrices(tmp_path / "a.mat", LIMIT)["X"]
    assert (found.dtype, found.tolist()) == (np.dtype("f8"), [[1], [10], [2]])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (matrix((32, 32, 3, 2), b"", number=0), "X of shape (32, 32, 3, 2) with 0 bytes of type 0"),
        (matrix((4, 4), bytes(15)), "X of shape (4, 4) with 15 bytes of type 2"),
        (matrix((4, 4), bytes(16), number=99), "X of shape (4, 4) with 16 bytes of type 99"),
        (matrix((2**20, 2), bytes(16)), "X of shape (1048576, 2) has 2,097,152 bytes: at most 1,048,576 are read"),
        (matrix((2**17, 2), bytes(16), flags=6), "X of shape (131072, 2) has 2,097,152 bytes: at most 1,048,576 are read"),
        (matrix((2**31 - 1,) * 8, bytes(16)), "bytes: at most 1,048,576 are read"),
        (matrix((4, -4), bytes(16)), "X is no matrix of numbers (class 9, shape (4, -4))"),
        (matrix((4, 4), bytes(16), flags=4), "X is no matrix of numbers (class 4, shape (4, 4))"),
        (matrix((4, 4), bytes(16), flags=0x809), "X is no matrix of numbers (class 9, shape (4, 4))"),
        (matrix((4, 4), bytes(16), claimed=2**32 - 1), "an element that claims 4,294,967,295 bytes"),
        (matrix((2**10, 2**9), bytes(16), claimed=2**19), "an element that claims 524,288 bytes"),
        (matrix((1,) * 9, bytes(1)), "an element that claims 36 bytes"),
        (matrix((4,), bytes(4)), "a matrix without dimensions"),
        (element(14, element(1, b"abcdefgh")), "a matrix without flags"),
        (element(14, struct.pack("<HH", 6, 5)), "a small element of 5 bytes"),
        (element(14, b""), "the file is cut off, or damaged"),
    ],
)
def test_hostile_files(content: bytes, message: str, compressed: bool, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(HEADER + (packed(content) if compressed else content))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_matrices(tmp_path / "a.mat", LIMIT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB 5 file"),
        (HEADER[:-4] + b"\x02\x00MI", "not a MATLAB 5 file (newer ones are written with -v7)"),
        (HEADER + matrix((4, 4), bytes(16), claimed=24), "an element that claims 24 bytes"),
        (HEADER + packed(matrix((4, 4), bytes(16), claimed=24)), "the file is cut off, or damaged"),
        (HEADER + b"\x0e\0\0", "the file is cut off, or damaged"),
        (HEADER + matrix((4, 4), bytes(16))[:-1], "goes beyond the end of the file"),
        (HEADER + matrix((4, 4), bytes(16)) * 2, "X is there twice"),
        (HEADER + packed(matrix((4, 4), bytes(16)) + bytes(80)), "more data than those of X"),
        (HEADER + packed(matrix((4, 4), bytes(16)), -3), "the file is cut off, or damaged"),
        (HEADER + packed(matrix((4, 4), bytes(16)), 20), "the file is cut off, or damaged"),
    ],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_matrices(tmp_path / "a.mat", LIMIT)


def test_a_damaged_stream_is_noticed(tmp_path: Path) -> None:
    content = bytearray(HEADER + packed(matrix((32, 32), np.random.default_rng(0).bytes(1024))))
    content[-100] ^= 1
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(zlib.error, match="incorrect data check"):
        read_matrices(tmp_path / "a.mat", LIMIT)
