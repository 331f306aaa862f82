"""How each kind of arm is built, as a user would build it: from weights in a file to a call that returns pooled features."""

import math
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
from densefeat.bench.inputs import Inputs, PooledBlocks, finite_or_none, load_network, worst_difference
from densefeat.bench.measure import read_peak, reset_peak, time_call
from densefeat.errors import UsageError
from densefeat.features import FeatureExtractor

Features = list[torch.Tensor]  # (N, C) for each block
Call = Callable[[torch.Tensor], Features]

# images, input and output channels, kernel, pixels of a side: on most processors one of these shapes is the fastest
_CONVOLUTIONS = ((8, 256, 256, 3, 28), (8, 128, 128, 3, 56), (8, 512, 512, 3, 14), (8, 1024, 512, 1, 28), (8, 512, 2048, 1, 28))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GEMM = 8192  # rows and columns
_COPIED = 2**30  # bytes
_TURN_SECONDS = 0.5  # of an arm's turn, where the number of calls is not set
_MOST_STEPS = 500
_TOLERANCE = 1e-5  # of fp32 features, or
_ROUNDINGS = 4  # times as far as the plain network in float32: DelugeNets are so deep that this is more
_LEAST_COSINE = 0.99  # of bf16 features


@dataclass
class ArmUnderTest:
    """An arm of the network ``model``, built and measured in a worker; ``steps``: calls a turn, None for half a second's."""

    arm: Arm
    model: str
    inputs: Inputs
    device: str
    steps: int | None = None

    def build(self) -> dict[str, Any]:
        """Time the arm until it is ready, and compare the features of its first and third call with the expected ones."""
        tensors = torch.load(self.inputs.tensors)
        self.x, rows, expected = tensors["x"].to(self.device), tensors["rows"], tensors["ours" if self.arm.ours else "others"]
        self.memory_format = torch.channels_last if self.arm.layout == "channels_last" else torch.contiguous_format
        reset_peak()
        self.before = read_peak(self.device)
        calls: list[Call] = []
        features: list[Features] = []
        seconds = [time_call(lambda: calls.append(BUILDERS[self.arm.kind](self)), self.device)]
        (self.call,) = calls
        keep = lambda: features.append([each.clone() for each in self.call(self.x)])  # noqa: E731
        seconds += [time_call(keep, self.device) for _ in range(3)]  # some capture in the second call what they replay later
        own = [[each[rows].cpu().double() for each in features[i]] for i in (0, 2)]
        summary = _compare_features(own[0] + own[1], expected * 2)
        self.steps = self.steps or min(_MOST_STEPS, math.ceil(_TURN_SECONDS / seconds[3]))
        names = {"build_seconds": seconds[0], "first_call_seconds": seconds[1], "third_call_seconds": seconds[3]}
        return {
            "problem": _check_features(self.arm.precision, summary, self.inputs.rounding),
            "steps": self.steps,
            **names,
            **summary,
        }

    def run(self) -> dict[str, Any]:
        def calls() -> None:
            for _ in range(self.steps or 1):
                self.call(self.x)

        seconds = time_call(calls, self.device)
        return {"problem": None, "seconds": seconds, "peak_bytes": read_peak(self.device) - self.before}

    def network(self) -> nn.Module:
        model = load_network(self.model, self.inputs.weights)
        return model.to(self.device, DTYPES[self.arm.precision]).to(memory_format=self.memory_format)

    def convert(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, DTYPES[self.arm.precision], memory_format=self.memory_format)


def _compare_features(own: Features, expected: Features) -> dict[str, float | None]:
    """The worst ``‖a − b‖ / ‖b‖`` and the worst cosine of a single image; None where one is not finite."""
    cosine = torch.stack([torch.cosine_similarity(a, b).min() for a, b in zip(own, expected, strict=True)]).min()
    return {"difference": worst_difference(own, expected), "cosine": finite_or_none(cosine)}


def _check_features(precision: str, summary: dict[str, Any], rounding: float) -> str | None:
    """Return what is wrong with an arm's features; ``rounding``: the distance that float32 itself causes."""
    if summary["difference"] is None or summary["cosine"] is None:
        return "wrong features: not finite"
    if precision == "fp32" and summary["difference"] > max(_TOLERANCE, _ROUNDINGS * rounding):
        return f"wrong features: off by {summary['difference']:.1e}"
    if precision == "bf16" and summary["cosine"] < _LEAST_COSINE:
        return f"wrong features: cosine {summary['cosine']:.4f}"
    return None


def _build_eager(test: ArmUnderTest) -> Call:
    return _call_module(test, PooledBlocks(test.network()))


def _call_module(test: ArmUnderTest, module: Callable[[torch.Tensor], Any]) -> Call:
    return torch.no_grad()(lambda x: list(module(test.convert(x))))


def _build_compiled(test: ArmUnderTest) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = test.device == "cpu"  # lets oneDNN lay out the weights once
    return _call_module(test, torch.compile(PooledBlocks(test.network()), mode=test.arm.mode))


def _build_hooks(test: ArmUnderTest) -> Call:
    """Hooks that keep a clone of every block's maps until the whole pass is over."""
    model: Any = test.network()
    clones: list[torch.Tensor] = []
    for entry in model.feature_info[1:]:
        model.get_submodule(entry["module"]).register_forward_hook(lambda _, __, maps: clones.append(maps.detach().clone()))

    @torch.no_grad()
    def call(x: torch.Tensor) -> Features:
        clones.clear()
        model(test.convert(x))
        return [each.mean((2, 3), dtype=torch.float32) for each in clones]

    return call


def _build_onnxruntime(test: ArmUnderTest) -> Call:
    _require("onnx", "onnxruntime")
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        torch.onnx.export(PooledBlocks(test.network()), (test.x,), file, dynamo=False, input_names=["x"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]


def _build_openvino_export(test: ArmUnderTest) -> Call:
    _require("openvino")
    import openvino

    _refuse_silent_fp32(test.arm.precision)
    with torch.no_grad():
        graph = openvino.convert_model(PooledBlocks(load_network(test.model, test.inputs.weights)), example_input=test.x)
    graph.reshape(list(test.x.shape))
    hint = "f32" if test.arm.precision == "fp32" else "bf16"  # without it OpenVINO takes bf16 where the processor has it
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(graph, "CPU", options)
    return lambda x: [torch.from_numpy(each.copy()) for each in network(x.numpy()).values()]


def _build_backend(test: ArmUnderTest) -> Call:
    if test.arm.kind == "openvino":
        _require("openvino")
        _refuse_silent_fp32(test.arm.precision)
    extractor = FeatureExtractor(test.model, backend=test.arm.kind, weights=test.inputs.weights, device=test.device)
    extractor.network.precision = test.arm.precision  # emulated, too, where the CPU has no bf16
    return lambda x: list(extractor.forward(x).values())


def _refuse_silent_fp32(precision: str) -> None:
    """Raise UsageError where OpenVINO would take the request for bf16, and compute in float32."""
    import openvino

    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("OpenVINO has no bf16 on this processor: it would compute in fp32")


def _require(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UsageError(f"not installed: {', '.join(missing)}")


BUILDERS: dict[str, Callable[[ArmUnderTest], Call]] = {
    "timm": _build_eager, "hooks": _build_hooks, "compile": _build_compiled, "onnxruntime": _build_onnxruntime,
    "openvino-export": _build_openvino_export, **dict.fromkeys(("reference", "buffer", "openvino", "triton"), _build_backend),
}  # fmt: skip


@dataclass
class Ceiling:
    """The machine's largest rates, FLOP/s and bytes/s, measured in turn with the arms.

    On a CPU the fastest convolution of several in each precision; on a GPU a matrix product, and a copy of memory.
    """

    device: str
    precisions: Sequence[str]
    steps: int = 1

    def build(self) -> dict[str, Any]:
        cuda = self.device == "cuda"
        build = self._build_product if cuda else _build_convolution
        kind = "product" if cuda else "convolution"
        self.works = {f"{precision} {kind}": build(DTYPES[precision]) for precision in self.precisions}
        if cuda:
            source, target = (torch.empty(_COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
            self.works["copy"] = (2 * _COPIED, lambda: target.copy_(source))  # read and written
        return {"problem": None}

    def run(self) -> dict[str, Any]:
        rates = {name: amount / self._least_seconds(work) for name, (amount, work) in self.works.items()}
        return {"problem": None, "rates": rates}

    def _least_seconds(self, work: Callable[[], object]) -> float:
        return min(time_call(work, self.device) for _ in range(4))

    def _build_product(self, dtype: torch.dtype) -> tuple[int, Callable[[], object]]:
        a, b = (torch.randn(_GEMM, _GEMM, device="cuda").to(dtype) for _ in range(2))
        return 2 * _GEMM**3, lambda: a @ b


def _build_convolution(dtype: torch.dtype) -> tuple[int, Callable[[], object]]:
    """FLOPs of the fastest convolution, and the call that computes it."""
    best: tuple[float, int, Callable[[], object]] = (0.0, 0, lambda: None)
    for n, channels_in, channels_out, kernel, size in _CONVOLUTIONS:
        x = torch.randn(n, channels_in, size, size).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels_out, channels_in, kernel, kernel).to(dtype, memory_format=torch.channels_last)
        call = lambda x=x, weight=weight, padding=kernel // 2: F.conv2d(x, weight, padding=padding)  # noqa: E731
        flops = 2 * n * channels_in * channels_out * kernel**2 * size**2
        best = max(best, (flops / min(time_call(call) for _ in range(4)), flops, call), key=lambda each: each[0])
    return best[1:]
