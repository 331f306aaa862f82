"""What is compared: each arm is one way to every block's pooled features, in a process of its own."""

from dataclasses import dataclass, replace

from densefeat.errors import UsageError

PRECISIONS = {"fp32": ("fp32",), "bf16": ("bf16",), "both": ("fp32", "bf16")}
# glibc keeps what is freed, and takes nothing by mmap: large maps do not cost fresh pages at every call
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass(frozen=True)
class Arm:
    """One way.

    Args:
        name: What ``--arms`` calls it.
        kind: What builds it, a key of :data:`densefeat.bench.builders.BUILDERS`; ours: the backend's name.
        precision: ``"fp32"`` or ``"bf16"``.
        layout: ``"NCHW"`` or ``"channels_last"``, of weights and images; our engines choose their own.
        allocator: ``"default"`` or ``"tuned"`` (:data:`TUNED_ALLOCATOR`).
        mode: Of ``torch.compile``.
    """

    name: str
    kind: str
    precision: str = "fp32"
    layout: str = "NCHW"
    allocator: str = "default"
    mode: str = "default"

    @property
    def ours(self) -> bool:
        return self.kind in ("reference", "buffer", "openvino", "triton")

    @property
    def pools_first(self) -> bool:
        """Whether its transitions convolve the pooled map: a quarter of their arithmetic."""
        return self.ours and self.kind != "reference"

    def title(self, network: str) -> str:
        """For a table. ``network``: whose code the others run: ``"timm"``, or ``"plain network"`` where timm has none."""
        if self.ours:
            return f"densefeat {self.kind}, {self.precision}"
        words = {
            "timm": f"{network} eager", "hooks": f"{network}, hooks that clone", "compile": f"{network}, torch.compile",
            "onnxruntime": "ONNX Runtime", "openvino-export": f"OpenVINO, {network} exported",
        }[self.kind]  # fmt: skip
        exported = self.kind in ("onnxruntime", "openvino-export")
        details = [] if exported else [self.layout]
        details += [self.mode] if self.mode != "default" else []
        details += ["tuned allocator"] if self.allocator == "tuned" else []
        return ", ".join([words, *details, self.precision])


NHWC = "channels_last"
EAGER = (Arm("timm-nchw", "timm"), Arm("timm-nhwc", "timm", layout=NHWC))
CPU = (
    *EAGER,
    Arm("timm-nchw-tuned", "timm", allocator="tuned"),
    Arm("timm-nhwc-tuned", "timm", layout=NHWC, allocator="tuned"),
    Arm("hooks", "hooks"),
    Arm("compile", "compile", layout=NHWC),
    Arm("onnxruntime", "onnxruntime"),
    Arm("openvino-export", "openvino-export"),
    Arm("reference", "reference"),
    Arm("buffer", "buffer"),
    Arm("openvino", "openvino"),
)
CUDA = (
    *EAGER,
    Arm("hooks", "hooks"),
    Arm("compile", "compile", layout=NHWC),
    Arm("compile-reduce-overhead", "compile", layout=NHWC, mode="reduce-overhead"),
    Arm("compile-max-autotune", "compile", layout=NHWC, mode="max-autotune"),
    Arm("reference", "reference"),
    Arm("triton", "triton"),
)
NO_BF16 = {"cpu": ("timm-nchw", "timm-nchw-tuned", "hooks", "onnxruntime"), "cuda": ()}  # slower than their fp32, or not had


def chosen_arms(asked: str, device: str, precision: str) -> list[Arm]:
    """The arms of a comparison, in the order of the table.

    Args:
        asked: With commas between, ``"quick"`` (timm eager and ours), ``"ours"``, ``"all"``, names and kinds.
        device: ``"cpu"`` or ``"cuda"``.
        precision: A key of :data:`PRECISIONS`.

    Raises:
        UsageError: A name that this device has no arm of, or none in this precision.
    """
    available, names = CUDA if device == "cuda" else CPU, asked.split(",")
    for name in names:
        if not any(answers_to(arm, name) for arm in available):
            known = ", ".join(arm.name for arm in available)
            raise UsageError(f"arm {name!r}: on {device} choose quick, ours, all, or some of {known}")
    arms = [
        replace(arm, precision=each)
        for each in PRECISIONS[precision]
        for arm in available
        if any(answers_to(arm, name) for name in names) and (each == "fp32" or arm.name not in NO_BF16[device])
    ]
    if not arms:
        raise UsageError(f"arms {asked!r}: none of them runs in {precision} on {device}")
    return arms


def answers_to(arm: Arm, name: str) -> bool:
    groups = {"all": True, "ours": arm.ours, "quick": arm.ours or arm in EAGER}
    return groups.get(name, False) or name in (arm.name, arm.kind)
