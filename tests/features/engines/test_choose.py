"""The choice of a backend: the fastest that can run, with a line in the log; and requests that are refused."""

import logging
import sys

import pytest
import timm
import torch

from densefeat import UsageError
from densefeat.features.engines.choose import build_engine, choose_backend, list_candidates, needs_proof
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.openvino.engine import OpenVinoEngine
from support.engines import deluge, dense, make_spec

GPU = EngineSpec((0,), "norm", "fp32", torch.device("cuda"))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "densefeat")
    return caplog


def test_auto_takes_openvino_if_it_is_installed(log: pytest.LogCaptureFixture) -> None:
    assert choose_backend("auto", dense(), make_spec()) == "openvino"
    assert log.messages == ["backend: openvino"]


def test_auto_takes_buffer_without_openvino(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_backend("auto", deluge(), make_spec()) == "buffer"
    assert log.messages == ["backend: buffer"]


def test_auto_takes_the_plain_network_if_it_has_unknown_parts(log: pytest.LogCaptureFixture) -> None:
    model = dense()
    model.features.norm5.register_forward_hook(lambda *_: None)
    assert choose_backend("auto", model, make_spec()) == "reference"
    assert log.messages == ["backend: reference (hooks are registered on it)"]


def test_auto_does_not_log_for_other_networks(log: pytest.LogCaptureFixture) -> None:
    assert choose_backend("auto", timm.create_model("resnet18"), make_spec()) == "reference"
    assert log.messages == []


def test_auto_starts_with_the_plain_network_on_a_gpu(log: pytest.LogCaptureFixture) -> None:
    assert choose_backend("auto", dense(), GPU) == "reference"
    assert log.messages == []


def test_the_candidates_that_have_to_prove_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # replaces the hardware
    assert list_candidates(dense(), GPU) == {"triton": "cuda has compute capability 7.5, below 8.0"}
    assert list_candidates(dense(), make_spec()) == {}
    assert list_candidates(timm.create_model("resnet18"), make_spec()) == {"openvino": None}
    assert list_candidates(torch.nn.Identity(), make_spec()) == {"openvino": "timm cannot list its blocks' maps"}
    monkeypatch.setitem(sys.modules, "openvino", None)
    (reason,) = list_candidates(timm.create_model("resnet18"), make_spec()).values()
    assert reason is not None
    assert reason.startswith("openvino is not installed")


@pytest.mark.parametrize(
    ("backend", "model", "expected"),
    [
        ("triton", dense(), True),
        ("openvino", dense(), False),
        ("buffer", dense(), False),
        ("openvino", timm.create_model("resnet18"), True),
    ],
)
def test_what_needs_a_proof(backend: str, model: torch.nn.Module, expected: bool) -> None:
    assert needs_proof(backend, model) is expected


@pytest.mark.parametrize("backend", ["reference", "buffer", "openvino"])
def test_a_backend_that_is_requested(backend: str, log: pytest.LogCaptureFixture) -> None:
    assert choose_backend(backend, dense(), make_spec()) == backend
    assert log.messages == []


@pytest.mark.parametrize(
    ("backend", "model", "spec", "match"),
    [
        ("fast", dense(), make_spec(), "backend 'fast': choose one of auto, reference, buffer, openvino, triton"),
        ("triton", dense(), make_spec(), "backend 'triton': cpu is not an NVIDIA GPU"),
        ("buffer", dense(), GPU, "backend 'buffer': it runs on the CPU, not on cuda"),
        ("openvino", dense(), GPU, "backend 'openvino': it runs on the CPU"),
        (
            "buffer",
            timm.create_model("resnet18"),
            make_spec(),
            "backend 'buffer': ResNet is neither densefeat's DenseNet nor its DelugeNet",
        ),
        ("openvino", dense().half(), make_spec(), "backend 'openvino': its parameters are torch.float16"),
    ],
)
def test_requests_that_are_refused(backend: str, model: torch.nn.Module, spec: EngineSpec, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        choose_backend(backend, model, spec)


def test_openvino_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"backend 'openvino': .* pip install 'densefeat\[openvino\]'"):
        choose_backend("openvino", dense(), make_spec())


@pytest.mark.parametrize(("name", "engine"), [("buffer", BufferEngine), ("openvino", OpenVinoEngine)])
def test_engines_are_built(name: str, engine: type) -> None:
    assert type(build_engine(name, dense(), make_spec())) is engine
