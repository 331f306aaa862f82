"""What a comparison measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densefeat.bench.arms import Arm, chosen_arms
from densefeat.bench.networks import check_name, own_size
from densefeat.errors import UsageError
from densefeat.features.extractor import resolve_device


@dataclass(frozen=True)
class Plan:
    """As :func:`make_plan` makes it. ``steps``: calls a turn; None for about half a second's. ``images`` None: noise."""

    model: str
    arms: Sequence[Arm]
    precision: str
    batch: int
    size: int
    device: str
    rounds: int
    steps: int | None
    images: Path | None


def make_plan(
    model: str = "densefeat_densenet121",
    arms: str = "quick",
    precision: str = "fp32",
    batch: int = 8,
    size: int | None = None,
    device: str = "auto",
    rounds: int = 5,
    steps: int | None = None,
    images: Path | None = None,
) -> Plan:
    """A plan that can be carried out here.

    Args:
        model: A network of ours; its weights are random, with statistics of noise.
        arms: As :func:`densefeat.bench.arms.chosen_arms` takes them.
        precision: ``"fp32"``, ``"bf16"`` or ``"both"``.
        size: Pixels of the square images; None for the network's own.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.

    Raises:
        UsageError: What this machine does not have, or no engine is for.
    """
    check_name(model)
    kind = resolve_device(device).type if device != "cpu" else "cpu"
    kind = "cpu" if kind == "mps" and device == "auto" else kind
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: engines are compared on cpu or cuda")
    return Plan(
        model, chosen_arms(arms, kind, precision), precision, batch, size or own_size(model), kind, rounds, steps, images
    )
