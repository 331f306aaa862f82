"""Which backend runs: the fastest that can, with a line that says so; and what cannot be asked for."""

import logging
import sys

import pytest
import timm
import torch

from densefeat import UsageError
from densefeat.features.engines.choose import build, choose
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.openvino.engine import OpenVinoEngine
from support.engines import deluge, dense, wanted

GPU = EngineSpec((0,), "norm", "fp32", torch.device("cuda"))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "densefeat")
    return caplog


def test_openvino_where_it_is_installed(told: pytest.LogCaptureFixture) -> None:
    assert choose("auto", dense(), wanted()) == "openvino"
    assert told.messages == ["backend: openvino"]


def test_buffer_where_it_is_not(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose("auto", deluge(), wanted()) == "buffer"
    assert told.messages == ["backend: buffer"]


def test_the_plain_network_where_engines_do_not_know_a_part(told: pytest.LogCaptureFixture) -> None:
    model = dense()
    model.features.norm5.register_forward_hook(lambda *_: None)
    assert choose("auto", model, wanted()) == "reference"
    assert told.messages == ["backend: reference (hooks are registered on it)"]


def test_the_plain_network_of_others_is_no_news(told: pytest.LogCaptureFixture) -> None:
    assert choose("auto", timm.create_model("resnet18"), wanted()) == "reference"
    assert told.messages == []


def test_a_gpu_that_is_too_old(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # stands for the hardware
    assert choose("auto", dense(), GPU) == "reference"
    assert told.messages == ["backend: reference (cuda has compute capability 7.5, below 8.0)"]


@pytest.mark.parametrize("backend", ["reference", "buffer", "openvino"])
def test_as_asked(backend: str, told: pytest.LogCaptureFixture) -> None:
    assert choose(backend, dense(), wanted()) == backend
    assert told.messages == []


@pytest.mark.parametrize(
    ("backend", "model", "asked", "match"),
    [
        ("fast", dense(), wanted(), "backend 'fast': choose one of auto, reference, buffer, openvino, triton"),
        ("triton", dense(), wanted(), "backend 'triton': cpu is no NVIDIA GPU"),
        ("buffer", dense(), GPU, "backend 'buffer': it runs on the CPU, not on cuda"),
        ("openvino", dense(), GPU, "backend 'openvino': it runs on the CPU"),
        ("buffer", timm.create_model("resnet18"), wanted(), "backend 'buffer': ResNet is no DenseNet or DelugeNet"),
        ("openvino", dense().half(), wanted(), "backend 'openvino': its parameters are torch.float16"),
    ],
)
def test_what_cannot_be_asked_for(backend: str, model: torch.nn.Module, asked: EngineSpec, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        choose(backend, model, asked)


def test_openvino_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"backend 'openvino': .* pip install 'densefeat\[openvino\]'"):
        choose("openvino", dense(), wanted())


@pytest.mark.parametrize(("name", "engine"), [("buffer", BufferEngine), ("openvino", OpenVinoEngine)])
def test_engines_are_built(name: str, engine: type) -> None:
    assert type(build(name, dense(), wanted())) is engine
