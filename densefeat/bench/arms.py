"""The arms of a comparison: each is one way to every block's pooled features."""

from dataclasses import dataclass, replace

from densefeat.errors import UsageError

PRECISIONS = {"fp32": ("fp32",), "bf16": ("bf16",), "both": ("fp32", "bf16")}
# glibc keeps freed memory and takes none by mmap, so that large maps do not cost fresh pages at every call
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
BASELINES = ("timm-nhwc-tuned", "timm-nhwc")  # the best that timm's eager network does without our engines
_GROUPS = ("quick", "ours", "all")
_BACKENDS = ("reference", "buffer", "openvino", "triton")


@dataclass(frozen=True)
class Arm:
    """One way to the features, run in a process of its own.

    Args:
        name: Its name for ``--arms``.
        kind: What builds it, a key of :data:`densefeat.bench.builders.BUILDERS`; for our backends the backend's name.
        layout: ``"NCHW"`` or ``"channels_last"``, for weights and images; our engines choose their own.
        allocator: ``"default"`` or ``"tuned"`` (:data:`TUNED_ALLOCATOR`).
        mode: The mode of ``torch.compile``.
        bf16: Whether it is measured in bfloat16, too.
    """

    name: str
    kind: str
    layout: str = "NCHW"
    allocator: str = "default"
    mode: str = "default"
    bf16: bool = True
    precision: str = "fp32"

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
        Arm("timm-nchw", "timm", bf16=False),
        Arm("timm-nhwc", "timm", "channels_last"),
        Arm("timm-nchw-tuned", "timm", allocator="tuned", bf16=False),
        Arm("timm-nhwc-tuned", "timm", "channels_last", "tuned"),
        Arm("hooks", "hooks", bf16=False),
        Arm("compile", "compile", "channels_last"),
        Arm("onnxruntime", "onnxruntime", bf16=False),
        *(Arm(name, name) for name in ("openvino-export", "reference", "buffer", "openvino")),
    ),
    "cuda": (
        Arm("timm-nchw", "timm"),
        Arm("timm-nhwc", "timm", "channels_last"),
        Arm("hooks", "hooks"),
        Arm("compile", "compile", "channels_last"),
        *(Arm(f"compile-{mode}", "compile", "channels_last", mode=mode) for mode in ("reduce-overhead", "max-autotune")),
        *(Arm(name, name) for name in ("reference", "triton")),
    ),
}


def check_arms(request: str, device: str) -> None:
    """Raise UsageError for a name that no device has an arm of; ``device`` may be ``"auto"``."""
    devices = [device] if device in ARMS else list(ARMS)
    known = [arm for each in devices for arm in ARMS[each]]
    for name in request.split(","):
        if name not in _GROUPS and not any(name in (arm.name, arm.kind) for arm in known):
            raise _make_unknown_error(name, devices)


def _make_unknown_error(name: str, devices: list[str]) -> UsageError:
    names = ", ".join(dict.fromkeys(arm.name for device in devices for arm in ARMS[device]))
    return UsageError(f"arm {name!r}: on {' or '.join(devices)} choose {', '.join(_GROUPS)}, or some of {names}")


def choose_arms(request: str, device: str, precision: str) -> list[Arm]:
    """The arms of a comparison, in the order of the table.

    Args:
        request: Separated by commas: ``"quick"`` (timm eager and our backends), ``"ours"``, ``"all"``, names and kinds.
        device: ``"cpu"`` or ``"cuda"``.
        precision: A key of :data:`PRECISIONS`.

    Raises:
        UsageError: A name that this device has no arm of, or none in this precision.
    """
    groups: dict[str, set[Arm]] = {"all": set(ARMS[device]), "ours": {arm for arm in ARMS[device] if arm.ours}}
    groups["quick"] = {arm for arm in ARMS[device] if arm.ours or arm.name in BASELINES}
    chosen: set[Arm] = set()
    for name in request.split(","):
        matches = groups.get(name) or {arm for arm in ARMS[device] if name in (arm.name, arm.kind)}
        if not matches:
            raise _make_unknown_error(name, [device])
        chosen |= matches
    arms = [replace(arm, precision=each) for each in PRECISIONS[precision] for arm in ARMS[device]
            if arm in chosen and (each == "fp32" or arm.bf16)]  # fmt: skip
    if not arms:
        raise UsageError(f"arms {request!r}: none of them runs in {precision} on {device}")
    return arms
