"""The process of one arm: ``python -m densefeat.bench.worker``; requests and replies are lines of JSON."""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from densefeat.bench.arms import Arm
from densefeat.bench.builders import BUILDERS, Features, NotInstalled, Setting, build_ceilings
from densefeat.bench.inputs import finite_or_none, worst_difference
from densefeat.bench.measure import read_peak, reset_peak, time_call
from densefeat.errors import DensefeatError


def main() -> None:
    """Answer requests until the other end closes. An error is a reply; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(sys.stdin, requests), daemon=True).start()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # our backends do not round to TF32
    subject: _Subject | None = None
    while True:
        request = json.loads(requests.get())
        try:
            if subject is None:
                subject = _Ceiling(request) if request["arm"] is None else _ArmUnderTest(request)
                reply = subject.summary
            else:
                reply = subject.run(request["steps"])
        except Exception as error:
            reply = {"problem": _describe(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _read_requests(lines: Iterable[str], requests: queue.SimpleQueue[str]) -> None:
    """Read in a thread, so that this process and its compilers end with the parent process, whatever they are doing."""
    for line in lines:
        requests.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


def _describe(error: Exception) -> str:
    if isinstance(error, NotInstalled):
        return str(error)
    text = " ".join(str(error).split()) or "no message"
    short = text if len(text) <= 200 else text[:200] + " …"
    return short if isinstance(error, DensefeatError) else f"{type(error).__name__}: {short}"


class _Subject(Protocol):
    """What a worker measures; ``summary`` is the reply to the request that builds it."""

    summary: dict[str, Any]

    def run(self, steps: int) -> dict[str, Any]: ...


class _Ceiling:
    """The machine's largest rates, FLOP/s and bytes/s, measured in turn with the arms."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device = torch.device(request["device"])
        self.works = build_ceilings(self.device, request["precisions"])
        self.summary: dict[str, Any] = {}

    def run(self, _: int) -> dict[str, Any]:
        return {"rates": {name: amount / min(time_call(work, self.device) for _ in range(4))
                          for name, (amount, work) in self.works.items()}}  # fmt: skip


class _ArmUnderTest:
    """An arm that is built, with the features of its first and third call compared with the expected ones."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device, arm = torch.device(request["device"]), Arm(**request["arm"])
        self.x = load_file(request["batch"])["x"].to(self.device)
        expected = load_file(request["expected"])
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        reset_peak()
        self.before = read_peak(self.device)

        def build() -> None:
            self.call = BUILDERS[arm.kind](Setting(arm, request["model"], request["weights"], self.device, self.x))

        def call() -> None:
            self.features = self.call(self.x)

        def check() -> None:
            pairs.extend(_pair_features(self.features, expected, request["taps"], request["rows"]))

        build_seconds, first_seconds = time_call(build, self.device), time_call(call, self.device)
        check()
        call()  # some arms capture in the second call what they replay from the third on
        third_seconds = time_call(call, self.device)
        check()
        self.summary: dict[str, Any] = {
            "build_seconds": build_seconds, "first_call_seconds": first_seconds, "third_call_seconds": third_seconds,
        } | _compare_features(pairs)  # fmt: skip

    def run(self, steps: int) -> dict[str, Any]:
        def calls() -> None:
            for _ in range(steps):
                self.call(self.x)

        seconds = time_call(calls, self.device)
        return {"seconds": seconds, "peak_bytes": read_peak(self.device) - self.before}


def _pair_features(
    features: Features, expected: dict[str, torch.Tensor], taps: list[str], rows: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each block the features of the images in ``rows``, computed and expected: ``(N, C)``, float64, on the CPU."""
    return [(own[rows].cpu().double(), expected[tap].double()) for own, tap in zip(features, taps, strict=True)]


def _compare_features(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float | None]:
    """The worst ``‖a − b‖ / ‖b‖`` and the worst cosine of a single image; None where one is not finite."""
    cosine = torch.stack([torch.cosine_similarity(a, b).min() for a, b in pairs]).min()
    return {"difference": worst_difference(pairs), "cosine": finite_or_none(cosine)}


if __name__ == "__main__":
    main()
