"""Matrices of numbers in MATLAB 5 files, in which SVHN is published: scipy's reader ends the process on crafted ones.

Only what such files hold is read: whole numbers and floats, little-endian, compressed or not. The size of a matrix is checked
against its limit and against the bytes in the file before memory is allocated.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

_HEADER_BYTES = 128
_VERSION_AND_ORDER = b"\x00\x01IM"  # version 1 of the format, little-endian
_MATRIX, _COMPRESSED, _TEXT, _INT32, _UINT32 = 14, 15, 1, 5, 6  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # of matrices
_COMPLEX = 0x0800
_MAX_DIMENSIONS, _MAX_NAME = 8, 63
_MAX_RATIO = 1032  # of deflate: no stream unpacks to more times its bytes
_CHUNK = 2**20


class _Bytes(Protocol):
    """The bytes of one element; ``most``: how many can still come at the most."""

    @property
    def most(self) -> int: ...

    def read(self, count: int) -> bytes: ...


class _PlainBytes:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.most = file, size

    def read(self, count: int) -> bytes:
        count = min(count, self.most)
        self.most -= count
        return self._file.read(count)


class _UnpackedBytes:
    def __init__(self, packed: _PlainBytes) -> None:
        self._packed, self._unpacker, self._pending = packed, zlib.decompressobj(), b""

    @property
    def most(self) -> int:
        return (self._packed.most + len(self._pending)) * _MAX_RATIO

    def read(self, count: int) -> bytes:
        parts = []
        while count > 0 and not self._unpacker.eof:
            part = self._unpacker.decompress(self._pending or self._packed.read(_CHUNK), min(count, _CHUNK))
            self._pending = self._unpacker.unconsumed_tail
            if not (part or self._pending or self._packed.most or self._unpacker.eof):
                raise ValueError("the file is cut off, or damaged")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def read_matrices(path: Path, max_bytes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the matrices of these names, and pass over all others.

    ``max_bytes``: the largest size of each, by name. Raises ValueError or zlib.error for another file, or a damaged one.
    """
    size = path.stat().st_size
    matrices: dict[str, np.ndarray] = {}
    with open(path, "rb") as file:
        if file.read(_HEADER_BYTES)[-4:] != _VERSION_AND_ORDER:
            raise ValueError("not a MATLAB 5 file (newer ones are written with -v7)")
        at = _HEADER_BYTES
        while at < size:
            file.seek(at)
            kind, length = struct.unpack("<II", _read_exactly(_PlainBytes(file, size - at), 8))
            at += 8 + length
            if at > size:
                raise ValueError(f"an element of {length:,} bytes goes beyond the end of the file: it is cut off, or damaged")
            content: _Bytes = _PlainBytes(file, length)
            if kind == _COMPRESSED:
                content = _UnpackedBytes(_PlainBytes(file, length))
                kind, length = struct.unpack("<II", _read_exactly(content, 8))
            if kind == _MATRIX:
                _read_matrix(content, max_bytes, matrices)
    return matrices


def _read_matrix(content: _Bytes, max_bytes: Mapping[str, int], matrices: dict[str, np.ndarray]) -> None:
    """Read one matrix into ``matrices``, if its name is asked for; it may be there once."""
    kind, flags = _read_element(content, 8)
    if kind != _UINT32 or len(flags) != 8:
        raise ValueError("a matrix without flags")
    flag = struct.unpack("<II", flags)[0]
    kind, dimensions = _read_element(content, 4 * _MAX_DIMENSIONS)
    if kind != _INT32 or len(dimensions) % 4 or len(dimensions) < 8:
        raise ValueError("a matrix without dimensions")
    shape = tuple(np.frombuffer(dimensions, "<i4").tolist())
    kind, text = _read_element(content, _MAX_NAME)
    name = text.decode("latin-1")
    if kind != _TEXT or name not in max_bytes:
        return
    if name in matrices:
        raise ValueError(f"{name} is there twice")
    if flag & 0xFF not in _CLASSES or flag & _COMPLEX or min(shape) < 0:
        raise ValueError(f"{name} is no matrix of numbers (class {flag & 0xFF}, shape {shape})")
    whole = math.prod(shape) * np.dtype(_CLASSES[flag & 0xFF]).itemsize  # numbers may be stored in fewer bytes
    if whole > max_bytes[name]:
        raise ValueError(f"{name} of shape {shape} has {whole:,} bytes: at most {max_bytes[name]:,} are read")
    kind, data = _read_element(content, max_bytes[name])
    stored = np.dtype(_NUMBERS.get(kind, "V1")).newbyteorder("<")
    if kind not in _NUMBERS or len(data) != math.prod(shape) * stored.itemsize:
        raise ValueError(f"{name} of shape {shape} with {len(data):,} bytes of type {kind}")
    if len(content.read(9)) > 8:  # padding; reading on also checks the checksum
        raise ValueError(f"more data than those of {name}")
    matrices[name] = np.frombuffer(data, stored).astype(_CLASSES[flag & 0xFF], copy=False).reshape(shape, order="F")


def _read_element(content: _Bytes, limit: int) -> tuple[int, bytes]:
    """Read an element inside a matrix, which is padded to 8 bytes: its type and its bytes, at most ``limit``."""
    head = _read_exactly(content, 4)
    kind, small = struct.unpack("<HH", head)
    if small:  # the whole element has 8 bytes
        if small > 4:
            raise ValueError(f"a small element of {small} bytes")
        return kind, _read_exactly(content, 4)[:small]
    (kind,), (length,) = struct.unpack("<I", head), struct.unpack("<I", _read_exactly(content, 4))
    if length > limit or length > content.most:
        raise ValueError(f"an element that claims {length:,} bytes")
    data = _read_exactly(content, length)
    content.read(-length % 8)
    return kind, data


def _read_exactly(content: _Bytes, count: int) -> bytes:
    data = content.read(count)
    if len(data) < count:
        raise ValueError("the file is cut off, or damaged")
    return data
