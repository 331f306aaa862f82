"""How each kind of arm is made, as a user of it would: from weights in a file to a call that gives pooled features."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.bench.arms import Arm
from densefeat.bench.networks import torch_network
from densefeat.features import FeatureExtractor
from densefeat.features.engines.openvino.engine import load as load_openvino

Features = list[torch.Tensor]  # (N, C) a block
Call = Callable[[torch.Tensor], Features]


class NotInstalled(Exception):
    """An arm's packages are not there; the message names them."""


@dataclass(frozen=True)
class Setting:
    """What a worker builds: ``arm`` of the network ``model`` with the weights in a file, on a device, for images like ``x``."""

    arm: Arm
    model: str
    weights: str
    device: torch.device
    x: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.arm.precision == "bf16" else torch.float32

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.arm.layout == "channels_last" else torch.contiguous_format


class PooledBlocks(nn.Module):
    """The maps of timm's ``forward_intermediates``, the stem's apart, average-pooled in float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.indices = list(range(1, len(model.feature_info)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return tuple(each.mean((2, 3), dtype=torch.float32) for each in maps)


def network_of(setting: Setting) -> nn.Module:
    model = torch_network(setting.model, setting.weights)
    return model.to(setting.device, setting.dtype).to(memory_format=setting.memory_format)


def laid_out(setting: Setting, x: torch.Tensor) -> torch.Tensor:
    return x.to(setting.device, setting.dtype, memory_format=setting.memory_format)


def of_module(setting: Setting, module: Callable[[torch.Tensor], Any]) -> Call:
    def call(x: torch.Tensor) -> Features:
        with torch.no_grad():
            return list(module(laid_out(setting, x)))

    return call


def eager(setting: Setting) -> Call:
    return of_module(setting, PooledBlocks(network_of(setting)))


def hooks(setting: Setting) -> Call:
    """Every block's maps are kept, as clones, until the whole pass is over."""
    model: Any = network_of(setting)
    kept: list[torch.Tensor] = []
    for entry in model.feature_info[1:]:
        model.get_submodule(entry["module"]).register_forward_hook(lambda _, __, maps: kept.append(maps.detach().clone()))

    def call(x: torch.Tensor) -> Features:
        kept.clear()
        with torch.no_grad():
            model(laid_out(setting, x))
        return [each.mean((2, 3), dtype=torch.float32) for each in kept]

    return call


def compiled(setting: Setting) -> Call:
    """With the weights frozen into the code on the CPU, where that lets oneDNN lay them out beforehand."""
    import torch._inductor.config as inductor

    inductor.freezing = setting.device.type == "cpu"
    return of_module(setting, torch.compile(PooledBlocks(network_of(setting)), mode=setting.arm.mode))


def onnxruntime(setting: Setting) -> Call:
    needed("onnx", "onnxruntime")
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        torch.onnx.export(PooledBlocks(network_of(setting)), (setting.x,), file, dynamo=False, input_names=["x"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]


def openvino_export(setting: Setting) -> Call:
    needed("openvino")
    ov = load_openvino()
    with torch.no_grad():
        graph = ov.convert_model(PooledBlocks(torch_network(setting.model, setting.weights)), example_input=setting.x)
    graph.reshape(list(setting.x.shape))
    hint = "f32" if setting.arm.precision == "fp32" else "bf16"  # by itself it takes bf16 where the processor has it
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = ov.Core().compile_model(graph, "CPU", options)
    return lambda x: [torch.from_numpy(each.copy()) for each in network(x.numpy()).values()]


def backend(setting: Setting) -> Call:
    extractor = FeatureExtractor(
        setting.model, weights=setting.weights, device=setting.device, precision=setting.arm.precision, backend=setting.arm.kind
    )
    return lambda x: list(extractor.forward(x).values())


def needed(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise NotInstalled(f"not installed: {', '.join(missing)}")


BUILDERS: dict[str, Callable[[Setting], Call]] = {
    "timm": eager, "hooks": hooks, "compile": compiled, "onnxruntime": onnxruntime, "openvino-export": openvino_export,
    "reference": backend, "buffer": backend, "openvino": backend, "triton": backend,
}  # fmt: skip
