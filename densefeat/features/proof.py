"""Whether a faster way to the features is right and faster, here and on these images: measured against the plain network.

An engine that our tests do not run on this machine's hardware, or that was traced from somebody else's network, is a bet. So it
computes a batch that the plain network computes, too, and is used only if it is equal and, unless it was asked for, faster.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from densefeat.base import describe_error

_Features = Mapping[str, torch.Tensor]
_Run = Callable[[], _Features]
_LARGEST = {"cpu": 1e-5, "cuda": 1e-3}  # difference in fp32, relative to the largest value of a feature
_COSINE = 0.9999  # in bf16, of every image
_ROUNDS = 3
_FASTER = 1.05


@dataclass(frozen=True)
class Trial:
    """What was measured of a backend.

    ``refused``: why it is not used, None if it may be; ``difference``: from the plain network, the largest relative to a
    feature's largest value, or in bf16 one less the smallest cosine; ``speed``: how many times as fast as the plain network,
    by medians of rounds in turn. What was not measured is None.
    """

    backend: str
    refused: str | None = None
    difference: float | None = None
    speed: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """Return one line about the trial."""
        measured = [] if self.difference is None else [f"it differs from the plain network by {self.difference:.1e}"]
        measured += [] if self.speed is None else [f"{self.speed:.2f} times as fast"]
        return f"backend {self.backend}: " + ", ".join([*([self.refused] if self.refused else ["used"]), *measured])


def try_backend(backend: str, plain: _Run, build: Callable[[], _Run], precision: str, device: torch.device) -> Trial:
    """Compare a backend with the plain network: both compute the features of the same batch.

    Args:
        backend: Its name.
        plain: Runs the plain network.
        build: Makes the function that runs the backend. Whatever the two raise becomes the reason why it is refused.
        precision: ``"fp32"`` or ``"bf16"``, of both.
        device: Where both compute.
    """
    difference = None
    try:
        run = build()
        expected = plain()
        difference, refused = compare_features(run(), expected, precision, device)
        if not all((values.isfinite() & (values != 0)).any() for values in expected.values()):
            refused = "the plain network gives nothing to compare: only zeros, NaN and infinities"
        if refused is not None:
            return Trial(backend, refused, difference)
        speed = _compare_speed(plain, run, device)
    except Exception as error:  # compilers and drivers raise errors of many types, and none of them is worth the job
        return Trial(backend, f"{type(error).__name__}: {describe_error(error)}", difference)
    return Trial(backend, None if speed >= _FASTER else "not faster by 5 %", difference, speed)


def compare_features(found: _Features, expected: _Features, precision: str, device: torch.device) -> tuple[float, str | None]:
    """Return how far features ``(N, …)`` by name are from the plain network's, and why that is too far, None if it is not.

    Where the plain network gives NaN or an infinity, so must the other.
    """
    worst, reason = 0.0, None
    for name, values in expected.items():
        difference = _measure(found[name].flatten(1).double(), values.flatten(1).double(), precision)
        allowed = 1 - _COSINE if precision == "bf16" else _LARGEST[device.type]
        if not difference <= allowed and reason is None:  # also where it is NaN
            reason = f"its {name} differs from the plain network's by {difference:.1e}, and {allowed:.0e} is allowed"
        worst = max(worst, difference) if difference == difference else difference
    return worst, reason


def _measure(found: torch.Tensor, expected: torch.Tensor, precision: str) -> float:
    special = ~expected.isfinite()
    if not torch.equal(~found.isfinite(), special) or not torch.allclose(found[special], expected[special], equal_nan=True):
        return float("nan")
    found, expected = (torch.nan_to_num(values, 0.0, 0.0, 0.0) for values in (found, expected))
    if precision == "bf16":
        same = (found == expected).all(1)  # also of images all of whose features are 0
        return float((1 - torch.cosine_similarity(found, expected).masked_fill(same, 1.0)).max())
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _compare_speed(plain: _Run, run: _Run, device: torch.device) -> float:
    times: list[tuple[float, float]] = [(_time(plain, device), _time(run, device)) for _ in range(_ROUNDS)]
    of_plain, of_run = (median(seconds) for seconds in zip(*times, strict=True))
    return of_plain / of_run


def _time(run: _Run, device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
