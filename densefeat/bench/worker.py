"""The process of one arm: ``python -m densefeat.bench.worker``; requests and replies are lines of JSON."""

import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

import densefeat
from densefeat.bench.arms import Arm
from densefeat.bench.builders import BUILDERS, Call, Features, NotInstalled, Setting
from densefeat.bench.ceiling import GpuRates, ProcessorRates
from densefeat.bench.networks import finite, worst_difference


def main() -> None:
    """Answer until the other end closes. An error is a reply; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read, args=(sys.stdin, requests), daemon=True).start()
    subject: Ceiling | ArmUnderTest | None = None
    while True:
        request = json.loads(requests.get())
        try:
            if subject is None:
                subject = Ceiling(request) if request["arm"] is None else ArmUnderTest(request)
                answer(replies, subject.told)
            else:
                answer(replies, subject.turn(request["steps"]))
        except Exception as error:
            answer(replies, {"problem": problem(error)})


def read(lines: Iterable[str], requests: queue.SimpleQueue[str]) -> None:
    """In a thread, so that this process and the compilers it runs end with the one that asks, whatever they are at."""
    for line in lines:
        requests.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


def answer(replies: IO[str], told: dict[str, Any]) -> None:
    replies.write(json.dumps(told) + "\n")
    replies.flush()


def problem(error: Exception) -> str:
    if isinstance(error, NotInstalled):
        return str(error)
    text = " ".join(str(error).split()) or "no message"
    short = text if len(text) <= 200 else text[:200] + " …"
    return short if isinstance(error, densefeat.DensefeatError) else f"{type(error).__name__}: {short}"


class Ceiling:
    """What the machine can do at most, measured in turn with the arms."""

    def __init__(self, request: dict[str, Any]) -> None:
        device, precisions = torch.device(request["device"]), request["precisions"]
        full_precision()
        self.rates = GpuRates(precisions, device) if device.type == "cuda" else ProcessorRates(precisions)
        self.told: dict[str, Any] = {}

    def turn(self, _: int) -> dict[str, Any]:
        return {"rates": self.rates.turn()}


class ArmUnderTest:
    """An arm, built, its first and third call's features compared; :attr:`told` has what that took and how far off they are."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device = torch.device(request["device"])
        arm = Arm(**request["arm"])
        x = load_file(request["batch"])["x"].to(self.device)
        full_precision()
        forget_peak()
        before = peak_bytes(self.device)
        with clock(self.device) as built:
            call = BUILDERS[arm.kind](Setting(arm, request["model"], request["weights"], self.device, x))
        with clock(self.device) as first:
            features = call(x)
        expected = (load_file(request["expected"]), request["taps"], request["rows"])
        pairs = compared(features, *expected)
        call(x)  # some capture now what they replay from the third call on
        with clock(self.device) as third:
            features = call(x)
        pairs += compared(features, *expected)
        self.call: Call = call
        self.x, self.before = x, before
        self.told: dict[str, Any] = {
            "build_seconds": built[0], "first_call_seconds": first[0], "third_call_seconds": third[0], **farthest(pairs),
        }  # fmt: skip

    def turn(self, steps: int) -> dict[str, Any]:
        """So many calls."""
        with clock(self.device) as taken:
            for _ in range(steps):
                self.call(self.x)
        return {"seconds": taken[0], "peak_bytes": peak_bytes(self.device) - self.before}


def full_precision() -> None:
    """No arm rounds float32 to TF32, as ours do not."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def clock(device: torch.device) -> Iterator[list[float]]:
    """Seconds, the device's work included, as the only entry of what it yields."""
    taken: list[float] = []
    wait_for(device)
    began = time.perf_counter()
    yield taken
    wait_for(device)
    taken.append(time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak() -> None:
    """Imports need more for a moment than they keep."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most so far: of the device's memory where it has its own, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(OSError):  # what getrusage tells may be of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


Pair = tuple[torch.Tensor, torch.Tensor]


def compared(features: Features, expected: dict[str, torch.Tensor], taps: list[str], rows: list[int]) -> list[Pair]:
    """Of each block, what was found for the images in ``rows`` and what was expected: ``(N, C)``, float64, in memory."""
    return [(own[rows].cpu().double(), expected[tap].double()) for own, tap in zip(features, taps, strict=True)]


def farthest(pairs: list[Pair]) -> dict[str, float | None]:
    """The worst ``‖a − b‖ / ‖b‖`` and, of single images, the worst cosine; None where one is not finite."""
    cosine = torch.stack([torch.cosine_similarity(a, b).min() for a, b in pairs]).min()
    return {"difference": worst_difference(pairs), "cosine": finite(cosine)}


if __name__ == "__main__":
    main()
