"""The budget of memory: what fits is taken, what does not fit waits, what never will fails, and nobody waits forever."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from densefeat.base import measure_memory_limit
from densefeat.errors import DecodeError
from densefeat.images.memory import MEMORY, MemoryBudget, _format_bytes

MB = 2**20


@pytest.fixture
def budget() -> MemoryBudget:
    budget = MemoryBudget()
    budget.start(100 * MB)
    return budget


def test_more_than_the_budget_fails_and_takes_nothing(budget: MemoryBudget) -> None:
    with budget.hold():
        budget.claim(60 * MB, "ten pixels")
        with pytest.raises(DecodeError, match=r"^five pixels need 110 MB .* more than the 105 MB .* \(--memory\)$") as caught:
            budget.claim(45 * MB, "five pixels")
        assert caught.value.stage == "memory"
        budget.claim(40 * MB, "what is left")
    with budget.hold():
        budget.claim(100 * MB, "all of it, given back")


def test_small_claims_are_free(budget: MemoryBudget) -> None:
    for _ in range(1000):
        budget.claim(MB, "a thumbnail")


def test_nested_blocks_give_back_at_the_end_of_the_outermost(budget: MemoryBudget) -> None:
    with budget.hold():
        with budget.hold():
            budget.claim(60 * MB, "a file")
        with budget.reserve(40 * MB, "a tile"), pytest.raises(DecodeError, match="a page"):
            budget.claim(10 * MB, "a page")
        budget.claim(40 * MB, "pixels in place of the tile")
    with budget.reserve(100 * MB, "everything"):
        pass


def run_threads(number: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(number) as pool:
        for future in [pool.submit(work, i) for i in range(number)]:
            future.result(timeout=60)


class Meter:
    """Bytes that threads have at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


def test_threads_wait_until_it_fits(budget: MemoryBudget) -> None:
    meter = Meter()

    def decode(_: int) -> None:
        for _ in range(20):
            with budget.hold():
                budget.claim(40 * MB, "an image")
                meter.add(40 * MB)
                time.sleep(0.001)
                meter.add(-40 * MB)

    run_threads(8, decode)
    assert meter.most == 80 * MB


def test_threads_that_have_some_do_not_wait_for_each_other(budget: MemoryBudget) -> None:
    """Eight read a file each, together all of the budget, and then need more for the pixels: one at a time exceeds it."""
    meter = Meter()
    have_files = threading.Barrier(8)

    def decode(_: int) -> None:
        for _ in range(5):
            have_files.wait()
            with budget.hold():
                budget.claim(12 * MB, "a file")
                meter.add(12 * MB)
                have_files.wait()
                budget.claim(50 * MB, "its pixels")
                meter.add(50 * MB)
                time.sleep(0.001)
                meter.add(-62 * MB)

    run_threads(8, decode)
    assert 100 * MB < meter.most <= 150 * MB


def test_an_error_gives_back(budget: MemoryBudget) -> None:
    with pytest.raises(ValueError, match="odd"), budget.hold():
        budget.claim(100 * MB, "an image")
        raise ValueError("odd")
    with budget.reserve(100 * MB, "the next"):
        pass


def test_the_default_is_half_of_what_there_is_shared_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MemoryBudget()
    assert budget.size == pytest.approx(measure_memory_limit() / 2, rel=0.01)
    budget.start(processes=4)
    for name, value in {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert budget.size == pytest.approx(measure_memory_limit() / 16, rel=0.01)


def test_a_limit_holds_for_a_block(budget: MemoryBudget) -> None:
    with budget.limit(10 * MB):
        assert budget.size == 10 * MB
        with budget.limit(None):
            assert budget.size == 10 * MB
    assert budget.size == 100 * MB


def claim_after_fork(answers: "multiprocessing.SimpleQueue[int]") -> None:
    MEMORY.start(50 * MB)
    with MEMORY.reserve(50 * MB, "an image"):
        answers.put(MEMORY.size)


def test_a_forked_process_starts_with_nothing_taken() -> None:
    """A worker of a DataLoader is forked while a thread of its parent may decode."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with MEMORY.limit(100 * MB), MEMORY.reserve(80 * MB, "an image of the parent"):
        process = context.Process(target=claim_after_fork, args=(answers,))
        process.start()
        process.join(60)
    assert process.exitcode == 0
    assert answers.get() == 50 * MB


@pytest.mark.parametrize(("size", "text"), [(4_200_000, "4 MB"), (999_400_000, "999 MB"), (5_430_000_000, "5.4 GB")])
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert _format_bytes(size) == text
