"""Processes of a job meet in a store that may still hold keys from before a restart; threads stand for processes."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from densefeat import DensefeatError
from densefeat.base import rendezvous
from densefeat.base.ranks import Ranks
from densefeat.base.rendezvous import enter_after_rank_0, open_shared_store

WORLD = 3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    monkeypatch.setattr(rendezvous, "_connect", lambda ranks, timeout: store)
    monkeypatch.setattr(rendezvous, "_POLL_SECONDS", 0.01)
    return store


@pytest.fixture
def start() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor(WORLD) as pool:
        yield pool.submit


def test_rank_0_enters_first_and_leaves_last(store: Store, start: Callable[..., Future]) -> None:
    events: list[str] = []

    def work(rank: int, pause: float) -> None:
        with enter_after_rank_0(Ranks(rank, WORLD)):
            events.append(f"{rank} in")
            time.sleep(pause)
            events.append(f"{rank} out")
        events.append(f"{rank} left")

    for _ in range(2):  # the second meeting finds the first one's keys
        events.clear()
        others = [start(work, rank, 0.1) for rank in (1, 2)]
        time.sleep(0.05)
        assert not events
        work(0, 0.0)
        for other in others:
            other.result()
        assert {"0 in", "1 out", "2 out"} <= set(events[: events.index("0 left")])


def test_a_rank_that_was_restarted_is_let_in_again(store: Store, start: Callable[..., Future]) -> None:
    store.set("densefeat/ask/1", "ticket of a process that died")
    entered = threading.Event()

    def work() -> None:
        with enter_after_rank_0(Ranks(1, 2)):
            entered.set()

    with enter_after_rank_0(Ranks(0, 2)):
        time.sleep(0.05)  # the old ticket is answered, and nobody confirms it
        other = start(work)
        assert entered.wait(10)
    other.result()


def test_an_error_of_rank_0_is_not_held_up(store: Store) -> None:
    with pytest.raises(KeyError), enter_after_rank_0(Ranks(0, 2)):
        raise KeyError


def test_alone_nobody_is_met() -> None:
    with enter_after_rank_0(Ranks()):
        pass


def test_each_start_has_a_store_for_itself(store: Store, start: Callable[..., Future]) -> None:
    for value in ("first", "second"):
        stores = [start(open_shared_store, Ranks(rank, WORLD)) for rank in range(WORLD)]
        first, *others = [each.result() for each in stores]
        assert not first.check(["key"])
        first.set("key", value)
        assert [other.get("key").decode() for other in others] == [value] * 2


def test_a_process_that_does_not_start_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_START_MINUTES", 0.001)
    with pytest.raises(DensefeatError, match=r"ranks 1, 2 did not start within 0.001 minutes: start all 3 processes"):
        open_shared_store(Ranks(0, WORLD))
