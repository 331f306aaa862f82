"""The arms of a comparison: each is one way to every block's pooled features."""

from dataclasses import dataclass, replace

from densefeat.errors import UsageError

PRECISIONS = {"fp32": ("fp32",), "bf16": ("bf16",), "both": ("fp32", "bf16")}
# glibc keeps freed memory and takes none by mmap, so that large maps do not cost fresh pages at every call
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
BASELINES = ("timm-nhwc-tuned", "timm-nhwc")  # the best that timm's eager network does without our engines

_BACKENDS = ("reference", "buffer", "openvino", "triton")
_NHWC = "channels_last"


@dataclass(frozen=True)
class Arm:
    """One way to the features, run in a process of its own.

    Args:
        name: Its name for ``--arms``.
        kind: What builds it, a key of :data:`densefeat.bench.builders.BUILDERS`; for our backends the backend's name.
        precision: ``"fp32"`` or ``"bf16"``.
        layout: ``"NCHW"`` or ``"channels_last"``, for weights and images; our engines choose their own.
        allocator: ``"default"`` or ``"tuned"`` (:data:`TUNED_ALLOCATOR`).
        mode: The mode of ``torch.compile``.
    """

    name: str
    kind: str
    precision: str = "fp32"
    layout: str = "NCHW"
    allocator: str = "default"
    mode: str = "default"

    @property
    def ours(self) -> bool:
        return self.kind in _BACKENDS

    @property
    def pools_first(self) -> bool:
        """Whether its transitions convolve the pooled map, which takes a quarter of their arithmetic."""
        return self.ours and self.kind != "reference"

    def title(self, network: str) -> str:
        """The arm's name in a table. ``network``: ``"timm"``, or ``"plain network"`` where timm does not have the network."""
        if self.ours:
            return f"densefeat {self.kind}, {self.precision}"
        words = {
            "timm": f"{network} eager", "hooks": f"{network}, hooks that clone", "compile": f"{network}, torch.compile",
            "onnxruntime": "ONNX Runtime", "openvino-export": f"OpenVINO, {network} exported",
        }[self.kind]  # fmt: skip
        details = [] if self.kind in ("onnxruntime", "openvino-export") else [self.layout]
        details += [self.mode] if self.mode != "default" else []
        details += ["tuned allocator"] if self.allocator == "tuned" else []
        return ", ".join([words, *details, self.precision])


ARMS = {
    "cpu": (
        Arm("timm-nchw", "timm"),
        Arm("timm-nhwc", "timm", layout=_NHWC),
        Arm("timm-nchw-tuned", "timm", allocator="tuned"),
        Arm("timm-nhwc-tuned", "timm", layout=_NHWC, allocator="tuned"),
        Arm("hooks", "hooks"),
        Arm("compile", "compile", layout=_NHWC),
        Arm("onnxruntime", "onnxruntime"),
        Arm("openvino-export", "openvino-export"),
        Arm("reference", "reference"),
        Arm("buffer", "buffer"),
        Arm("openvino", "openvino"),
    ),
    "cuda": (
        Arm("timm-nchw", "timm"),
        Arm("timm-nhwc", "timm", layout=_NHWC),
        Arm("hooks", "hooks"),
        Arm("compile", "compile", layout=_NHWC),
        Arm("compile-reduce-overhead", "compile", layout=_NHWC, mode="reduce-overhead"),
        Arm("compile-max-autotune", "compile", layout=_NHWC, mode="max-autotune"),
        Arm("reference", "reference"),
        Arm("triton", "triton"),
    ),
}
_FP32_ALONE = {"cpu": ("timm-nchw", "timm-nchw-tuned", "hooks", "onnxruntime"), "cuda": ()}  # bf16 is slower, or missing


def choose_arms(request: str, device: str, precision: str) -> list[Arm]:
    """The arms of a comparison, in the order of the table.

    Args:
        request: Separated by commas: ``"quick"`` (timm eager and our backends), ``"ours"``, ``"all"``, names and kinds.
        device: ``"cpu"`` or ``"cuda"``.
        precision: A key of :data:`PRECISIONS`.

    Raises:
        UsageError: A name that this device has no arm of, or none in this precision.
    """
    names = request.split(",")
    for name in names:
        if not any(_matches(arm, name) for arm in ARMS[device]):
            known = ", ".join(arm.name for arm in ARMS[device])
            raise UsageError(f"arm {name!r}: on {device} choose quick, ours, all, or some of {known}")
    arms = [
        replace(arm, precision=each)
        for each in PRECISIONS[precision]
        for arm in ARMS[device]
        if any(_matches(arm, name) for name in names) and (each == "fp32" or arm.name not in _FP32_ALONE[device])
    ]
    if not arms:
        raise UsageError(f"arms {request!r}: none of them runs in {precision} on {device}")
    return arms


def _matches(arm: Arm, name: str) -> bool:
    groups = {"all": True, "ours": arm.ours, "quick": arm.ours or arm.name in BASELINES}
    return groups.get(name, False) or name in (arm.name, arm.kind)
