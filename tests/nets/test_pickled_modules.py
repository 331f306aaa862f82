"""Files of modules that were pickled whole: tensors and names are read, and nothing in them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densefeat.errors import WeightsError
from densefeat.nets.checkpoint_file import load_torch_file, read_checkpoint

FORMATS = pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}], ids=["archive", "before torch 1.6"]
)


class Harm:
    """An object whose pickle makes a folder when it is read by Python's own unpickler."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


class Net(nn.Module):
    """A module with everything that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(3, 2, dtype=torch.float64)
        self.tied = self.layers[0]
        self.none = None
        self.register_buffer("thresholds", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("scratch", torch.ones(1), persistent=False)
        self.register_buffer("absent", None)
        self.small = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
        self.words, self.anything = ["a"], lambda x: x


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_net() -> Net:
    torch.manual_seed(0)
    net = Net()
    del net.anything  # which no pickle can hold
    return net


@FORMATS
@pytest.mark.parametrize("place", ["alone", "model", "ema"])
def test_the_state_dict_of_a_module(place: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = make_net()
    content: Any = {
        "alone": net,
        "model": {"epoch": 3, "model": net, "optimizer": {"state": {}}},
        "ema": {"model": nn.Linear(1, 1), "ema": net, "updates": 7},
    }[place]
    torch.save(content, "w.pt", **options)
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    wanted = net.state_dict()
    assert checkpoint.tensors.keys() == wanted.keys()
    for name, value in checkpoint.tensors.items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name]), name
    assert checkpoint.class_name.endswith("Linear" if place == "ema" else "Net")


@FORMATS
def test_nothing_runs(options: dict[str, Any], tmp_path: Path) -> None:
    net = make_net()
    net.harm, net.layers.more = Harm(), [Harm(), {"a": Harm()}]
    torch.save({"model": net, "args": Harm()}, "w.pt", **options)
    assert read_checkpoint(tmp_path / "w.pt").tensors.keys() == net.state_dict().keys()
    assert not Path("harmed").exists()


def test_other_files_of_torch_are_not_read_so(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), "w.pt")
    with pytest.raises(WeightsError, match="refused, its pickle holds more than tensors"):
        load_torch_file(tmp_path / "w.pt", "checkpoint w.pt")


MODULE = "torch.nn.modules.module\nModule"


def write_archive(body: bytes, storages: dict[str, bytes] | None = None) -> None:
    """Write an archive as torch does, whose pickle is a dictionary of a module's state and ends with what is given."""
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("w/version", "3\n")
        for name, data in (storages or {}).items():
            archive.writestr(f"w/data/{name}", data)


def make_tensor(offset: int = 0, size: tuple = (2,), stride: tuple = (1,), count: int = 2, kind: str = "FloatStorage") -> bytes:
    """Make the opcodes of a tensor."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + dump(count) + b"tQ"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + dump(offset) + dump(size) + dump(stride) + b"tR"


def dump(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def make_module(parameter: bytes = b"N", inner: bytes = b"}") -> bytes:
    """Make the opcodes of a module with a parameter ``a`` and inner modules."""
    state = b"}(X\x0b\x00\x00\x00_parameters}X\x01\x00\x00\x00a" + parameter + b"sX\x08\x00\x00\x00_modules" + inner + b"u"
    return b"c" + MODULE.encode() + b"\n)\x81" + state + b"b"


def test_the_opcodes_of_these_tests(tmp_path: Path) -> None:
    write_archive(make_module(make_tensor()), {"0": torch.tensor([1.0, 2.0]).numpy().tobytes()})
    assert read_checkpoint(tmp_path / "w.pt").tensors["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (make_tensor(size=(3,)), r"'a' \(3,\) is larger than its numbers"),
        (make_tensor(offset=1), "is larger than its numbers"),
        (make_tensor(stride=(2,)), "is larger than its numbers"),
        (make_tensor(stride=(0,), size=(10**12,)), "is larger than its numbers"),
        (make_tensor(size=(2**40, 2**40), stride=(0, 0)), "is larger than its numbers"),
        (make_tensor(count=99, size=(99,)), "is larger than its numbers"),
        (make_tensor(offset=-1), "is no tensor that can be read"),
        (make_tensor(count=-1), "is no tensor that can be read"),
        (make_tensor(size=(True,)), "is no tensor that can be read"),
        (make_tensor(size=(2**70,)), "is no tensor that can be read"),
        (make_tensor(size=(1,) * 9, stride=(1,) * 9), "is no tensor that can be read"),
        (make_tensor(size=("a",)), "is no tensor that can be read"),
        (make_tensor(kind="QInt8Storage"), "refused"),
    ],
)
def test_tensors_that_are_not_in_the_file(tensor: bytes, match: str, tmp_path: Path) -> None:
    write_archive(make_module(tensor), {"0": bytes(8)})
    with pytest.raises(WeightsError, match=match):
        read_checkpoint(tmp_path / "w.pt")


def nest(levels: int) -> bytes:
    body = make_module()
    for _ in range(levels):
        body = make_module(inner=b"}X\x01\x00\x00\x00m" + body + b"s")
    return body


def repeat(levels: int, width: int) -> bytes:
    """Make lists in which each element is the same list, levels deep: few bytes for many values."""
    body = make_module() + b"q\x000"  # remembered, and taken off the stack
    for level in range(1, levels + 1):
        body += b"](" + (b"h" + bytes([level - 1])) * width + b"eq" + bytes([level]) + b"0"
    return body + b"h" + bytes([levels])


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (nest(100), "its modules are nested too deeply"),
        (b"}X\x01\x00\x00\x00a" + repeat(3, 200) + b"s", "more than 262,144 modules, tensors and other values"),
        (make_module() + b"q\x000h\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00mh\x00ssb", "nested too deeply"),
        (b"\x82\x01" + make_module() + b"\x86", "refused|that can be read safely"),
        (b"r\xff\xff\xff\x7f" + make_module(), "refused|that can be read safely|truncated"),
        (b"cposix\nsystem\nX\x01\x00\x00\x00a\x85R", "refused"),
    ],
    ids=["nested", "repeated", "in a circle", "an extension", "a memo of 2**31", "code alone"],
)
def test_hostile_structures(body: bytes, match: str, tmp_path: Path) -> None:
    write_archive(body)
    with pytest.raises(WeightsError, match=match):
        read_checkpoint(tmp_path / "w.pt")


def test_truncated_files_before_torch_1_6(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(make_net(), buffer, _use_new_zipfile_serialization=False)
    whole = buffer.getvalue()
    for length in (len(whole) - 5, len(whole) // 2, 300):
        (tmp_path / "w.pt").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="refused|truncated"):
            read_checkpoint(tmp_path / "w.pt")


def test_state_dicts_stay_with_torch(tmp_path: Path) -> None:
    torch.save(OrderedDict(a=torch.ones(2)), "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert (checkpoint.class_name, list(checkpoint.tensors)) == ("", ["a"])
