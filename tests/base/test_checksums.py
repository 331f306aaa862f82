"""Checksums inside files: whatever byte is damaged, the content is refused or the same; files without one are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from densefeat.base.checksums import CHECKSUM, add_checksum, check_checksum, check_tensors, save_tensors
from densefeat.errors import WeightsError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), 'b "é"\n': np.ones(3, np.float16)}
METADATA = {"z": '{"densefeat_sha256":"' + "0" * 64 + '"}', "classes": '["é\\u0001 \\" \x7f"]', "a": ""}
CONTENT = {"mean": [0.485, 1e-7, None], "names": ["é", "\u2028"], "deep": {"b": 1, "a": True}, "size": 32}


def flips(data: bytes) -> list[bytes]:
    """Flip one bit of each byte, another one from byte to byte."""
    return [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    check_tensors(path, "weights w")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    return {name: (value.dtype, value.shape, value.tobytes()) for name, value in load_file(path).items()}, metadata


def test_the_same_file_every_time_with_what_it_was_given(tmp_path: Path) -> None:
    for name in "abcdef":
        save_tensors(save_file, TENSORS, tmp_path / name, METADATA)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    tensors, metadata = read_tensors(tmp_path / "a")
    assert tensors == {name: (value.dtype, value.shape, value.tobytes()) for name, value in TENSORS.items()}
    assert {name: value for name, value in metadata.items() if name != CHECKSUM} == METADATA


def test_no_flipped_bit_of_tensors_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_tensors(save_file, TENSORS, path, METADATA)
    good, refused = read_tensors(path)[0], 0
    damaged = flips(path.read_bytes())
    for data in damaged:
        path.write_bytes(data)
        try:
            tensors, metadata = read_tensors(path)
            assert tensors == good
            assert METADATA.items() <= metadata.items()
        except (WeightsError, SafetensorError, ValueError, KeyError):
            refused += 1
    assert refused > 0.9 * len(damaged)
    path.write_bytes(damaged[-1])
    with pytest.raises(
        WeightsError, match=r"^weights w: damaged, or changed by another program: .* restore it from a copy, or make it again"
    ):
        check_tensors(path, "weights w")


def test_files_without_a_checksum_are_not_judged(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "old", {"classes": "[]"})
    for name, data in {
        "old": (tmp_path / "old").read_bytes(),
        "empty": b"",
        "short": b"\xff" * 9,
        "text": b"no tensors here",
    }.items():
        (tmp_path / name).write_bytes(data)
        check_tensors(tmp_path / name, "weights")


def test_no_changed_value_of_json_goes_unnoticed() -> None:
    text = json.dumps(add_checksum(CONTENT), ensure_ascii=False)
    check_checksum(json.loads(json.dumps(json.loads(text), indent=2)), "results")  # layout does not count
    refused = 0
    for data in flips(text.encode()):
        try:
            content = json.loads(data.decode())
        except ValueError:
            continue
        try:
            check_checksum(content, "results r")
            assert {name: content.get(name) for name in CONTENT} == CONTENT
        except WeightsError as error:
            assert str(error).startswith("results r: damaged, its content does not match its checksum: restore")
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [CONTENT, {}, [], None, 3, "text"])
def test_json_without_a_checksum_is_not_judged(content: Any) -> None:
    check_checksum(content, "results")
