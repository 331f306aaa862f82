"""Lanes: each gets a share of the images, in order, and of the threads."""

import os
import signal
import threading
import time

import pytest
import torch

from densefeat.features.engines.cpu.lanes import _MAX_LANES, Lanes


@pytest.fixture(params=[1, 2, 3, 4, 12])
def lanes(request: pytest.FixtureRequest) -> Lanes:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    try:
        return Lanes()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 20])
def test_each_image_runs_once_in_order(lanes: Lanes, images: int) -> None:
    parts = lanes.map(lambda _, x: x, torch.arange(images))
    assert torch.cat(parts).tolist() == list(range(images))
    assert len(parts) == lanes.count(images) <= min(images, lanes.threads, _MAX_LANES)


def test_threads_are_divided(lanes: Lanes) -> None:
    count = lanes.count(20)
    results = lanes.map(lambda lane, _: (lane, torch.get_num_threads()), torch.arange(20))
    assert sorted(lane for lane, _ in results) == list(range(count))
    if count > 1:
        assert {threads for _, threads in results} == {lanes.threads // count}


def test_other_threads_are_not_limited(lanes: Lanes) -> None:
    before, later_thread = torch.get_num_threads(), []
    lanes.map(lambda _, x: x + x, torch.zeros(20, 1000, 1000))
    thread = threading.Thread(target=lambda: later_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later_thread] == [before, before]


def test_errors_reach_the_caller(lanes: Lanes) -> None:
    def fail(lane: int, x: torch.Tensor) -> None:
        raise RuntimeError(f"lane {lane}")

    with pytest.raises(RuntimeError, match="lane 0"):
        lanes.map(fail, torch.arange(20))


def test_an_error_waits_for_the_others() -> None:
    lanes, ended = Lanes(), []
    lanes.threads = 2

    def fail_or_sleep(lane: int, _: torch.Tensor) -> None:
        if lane == 0:
            raise RuntimeError("lane 0")
        time.sleep(0.3)
        ended.append(lane)

    with pytest.raises(RuntimeError, match="lane 0"):
        lanes.map(fail_or_sleep, torch.arange(4))
    assert ended == [1]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_waits_for_the_lanes() -> None:
    lanes, ended = Lanes(), []
    lanes.threads = 2

    def sleep(lane: int, _: torch.Tensor) -> None:
        time.sleep(0.5)
        ended.append(lane)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            lanes.map(sleep, torch.arange(4))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sorted(ended) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_after_a_fork() -> None:
    lanes = Lanes()
    lanes.threads = 2
    assert len(lanes.map(lambda _, x: x, torch.arange(4))) == 2
    child = os.fork()
    if child == 0:
        os._exit(len(lanes.map(lambda _, x: x, torch.arange(4))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
