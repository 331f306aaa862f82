"""How each kind of arm is built, as a user would build it: from weights in a file to a call that returns pooled features."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from densefeat.bench.arms import Arm
from densefeat.bench.inputs import load_network
from densefeat.bench.measure import time_call
from densefeat.features import FeatureExtractor, load_openvino

Features = list[torch.Tensor]  # (N, C) for each block
Call = Callable[[torch.Tensor], Features]

# images, input and output channels, kernel, pixels of a side: on most processors one of these shapes is the fastest
CONVOLUTIONS = ((8, 256, 256, 3, 28), (8, 128, 128, 3, 56), (8, 512, 512, 3, 14), (8, 1024, 512, 1, 28), (8, 512, 2048, 1, 28))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GEMM = 8192  # rows and columns
_COPIED = 2**30  # bytes


class NotInstalled(Exception):
    """The packages of an arm are missing; the message names them."""


@dataclass(frozen=True)
class Setting:
    """What to build: ``arm`` for the network ``model`` with the weights in a file, on a device, for images like ``x``."""

    arm: Arm
    model: str
    weights: str
    device: torch.device
    x: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.arm.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.arm.layout == "channels_last" else torch.contiguous_format

    def network(self) -> nn.Module:
        model = load_network(self.model, self.weights)
        return model.to(self.device, self.dtype).to(memory_format=self.memory_format)

    def convert(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, self.dtype, memory_format=self.memory_format)


class PooledBlocks(nn.Module):
    """The maps of timm's ``forward_intermediates`` but the stem's, average-pooled in float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.indices = list(range(1, len(model.feature_info)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return tuple(each.mean((2, 3), dtype=torch.float32) for each in maps)


def _call_module(setting: Setting, module: Callable[[torch.Tensor], Any]) -> Call:
    def call(x: torch.Tensor) -> Features:
        with torch.no_grad():
            return list(module(setting.convert(x)))

    return call


def _build_eager(setting: Setting) -> Call:
    return _call_module(setting, PooledBlocks(setting.network()))


def _build_hooks(setting: Setting) -> Call:
    """Hooks that keep a clone of every block's maps until the whole pass is over."""
    model: Any = setting.network()
    clones: list[torch.Tensor] = []
    for entry in model.feature_info[1:]:
        model.get_submodule(entry["module"]).register_forward_hook(lambda _, __, maps: clones.append(maps.detach().clone()))

    def call(x: torch.Tensor) -> Features:
        clones.clear()
        with torch.no_grad():
            model(setting.convert(x))
        return [each.mean((2, 3), dtype=torch.float32) for each in clones]

    return call


def _build_compiled(setting: Setting) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = setting.device.type == "cpu"  # lets oneDNN lay out the weights once
    return _call_module(setting, torch.compile(PooledBlocks(setting.network()), mode=setting.arm.mode))


def _build_onnxruntime(setting: Setting) -> Call:
    _require("onnx", "onnxruntime")
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        torch.onnx.export(PooledBlocks(setting.network()), (setting.x,), file, dynamo=False, input_names=["x"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]


def _build_openvino_export(setting: Setting) -> Call:
    _require("openvino")
    openvino = load_openvino()
    with torch.no_grad():
        graph = openvino.convert_model(PooledBlocks(load_network(setting.model, setting.weights)), example_input=setting.x)
    graph.reshape(list(setting.x.shape))
    hint = "f32" if setting.arm.precision == "fp32" else "bf16"  # without it OpenVINO takes bf16 where the processor has it
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(graph, "CPU", options)
    return lambda x: [torch.from_numpy(each.copy()) for each in network(x.numpy()).values()]


def _build_backend(setting: Setting) -> Call:
    extractor = FeatureExtractor(
        setting.model, weights=setting.weights, device=setting.device, precision=setting.arm.precision, backend=setting.arm.kind
    )
    return lambda x: list(extractor.forward(x).values())


def _require(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise NotInstalled(f"not installed: {', '.join(missing)}")


BUILDERS: dict[str, Callable[[Setting], Call]] = {
    "timm": _build_eager, "hooks": _build_hooks, "compile": _build_compiled, "onnxruntime": _build_onnxruntime,
    "openvino-export": _build_openvino_export,
    "reference": _build_backend, "buffer": _build_backend, "openvino": _build_backend, "triton": _build_backend,
}  # fmt: skip


def build_ceilings(device: torch.device, precisions: Sequence[str]) -> dict[str, tuple[int, Callable[[], object]]]:
    """What the machine does at most, by name: FLOPs or bytes of a call, and the call.

    On a CPU the fastest convolution of several in each precision; on a GPU a matrix product, and a copy of memory.
    """
    kind = "product" if device.type == "cuda" else "convolution"
    works = {f"{precision} {kind}": _build_ceiling(device, precision) for precision in precisions}
    if device.type == "cuda":
        source, target = (torch.empty(_COPIED, dtype=torch.uint8, device=device) for _ in range(2))
        works["copy"] = (2 * _COPIED, lambda: target.copy_(source))  # read and written
    return works


def _build_ceiling(device: torch.device, precision: str) -> tuple[int, Callable[[], object]]:
    dtype = DTYPES[precision]
    if device.type == "cuda":
        a, b = (torch.randn(_GEMM, _GEMM, device=device).to(dtype) for _ in range(2))
        return 2 * _GEMM**3, lambda: a @ b
    works = [_build_convolution(shape, dtype) for shape in CONVOLUTIONS]
    seconds = [min(time_call(call) for _ in range(4)) for _, call in works]
    return max(zip(works, seconds, strict=True), key=lambda each: each[0][0] / each[1])[0]


def _build_convolution(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[int, Callable[[], torch.Tensor]]:
    """FLOPs of a convolution, and the call that computes it; ``shape`` as in :data:`CONVOLUTIONS`."""
    n, channels_in, channels_out, kernel, size = shape
    x = torch.randn(n, channels_in, size, size).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels_out, channels_in, kernel, kernel).to(dtype, memory_format=torch.channels_last)
    flops = 2 * n * channels_in * channels_out * kernel**2 * size**2
    return flops, lambda: F.conv2d(x, weight, padding=kernel // 2)
