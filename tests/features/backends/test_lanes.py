"""Lanes: images are shared out in order, and each thread keeps to its share of the cores."""

import os
import threading

import pytest
import torch

from densefeat.features.backends.lanes import MOST, Lanes


@pytest.fixture(params=[1, 2, 3, 4, 12])
def lanes(request: pytest.FixtureRequest) -> Lanes:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    try:
        return Lanes()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 20])
def test_every_image_once_in_order(lanes: Lanes, images: int) -> None:
    parts = lanes.map(lambda _, x: x, torch.arange(images))
    assert torch.cat(parts).tolist() == list(range(images))
    assert len(parts) == lanes.count(images) <= min(images, lanes.threads, MOST)


def test_threads_are_divided(lanes: Lanes) -> None:
    count = lanes.count(20)
    told = lanes.map(lambda lane, _: (lane, torch.get_num_threads()), torch.arange(20))
    assert sorted(lane for lane, _ in told) == list(range(count))
    if count > 1:
        assert {threads for _, threads in told} == {lanes.threads // count}


def test_other_threads_keep_theirs(lanes: Lanes) -> None:
    before, later = torch.get_num_threads(), []
    lanes.map(lambda _, x: x + x, torch.zeros(20, 1000, 1000))
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [before, before]


def test_errors_come_through(lanes: Lanes) -> None:
    def fail(lane: int, x: torch.Tensor) -> None:
        raise RuntimeError(f"lane {lane}")

    with pytest.raises(RuntimeError, match="lane 0"):
        lanes.map(fail, torch.arange(20))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_after_a_fork() -> None:
    lanes = Lanes()
    lanes.threads = 2
    assert len(lanes.map(lambda _, x: x, torch.arange(4))) == 2
    child = os.fork()
    if child == 0:
        os._exit(len(lanes.map(lambda _, x: x, torch.arange(4))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
