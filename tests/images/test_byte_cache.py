"""The cache is bounded in bytes; threads that need a value at the same time compute it once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from densefeat.errors import DecodeError
from densefeat.images.byte_cache import ByteCache


class Bytes:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def counted(computed: list[Any], key: Any, nbytes: int) -> Callable[[], Bytes]:
    def make() -> Bytes:
        computed.append(key)
        return Bytes(nbytes)

    return make


def test_the_cache_is_bounded_but_keeps_the_newest() -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed: list[str] = []
    for key in "abacab":
        cache.get(key, counted(computed, key, 40))
    assert computed == ["a", "b", "c", "b"]  # a was used more recently than b when c came
    assert cache.size == 80
    cache.get("huge", counted(computed, "huge", 1000))
    cache.get("huge", counted(computed, "huge", 1000))
    assert computed[-1] == "huge"
    assert computed.count("huge") == 1
    assert cache.size == 1000
    cache.get("a", counted(computed, "a", 40))
    assert cache.size == 40


def test_threads_compute_a_value_once() -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed: list[str] = []
    together = threading.Barrier(8)

    def make() -> Bytes:
        time.sleep(0.05)
        computed.append("a")
        return Bytes(1)

    def get(_: int) -> Bytes:
        together.wait()
        return cache.get("a", make)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(get, range(8)))
    assert computed == ["a"]
    assert all(value is values[0] for value in values)


@pytest.mark.parametrize(("stage", "times"), [("decode", 1), ("read", 2)])
def test_failures_to_decode_are_cached(stage: str, times: int) -> None:
    cache: ByteCache[Bytes] = ByteCache(100)
    computed = []

    def fail() -> Bytes:
        computed.append(1)
        raise DecodeError("broken", stage)

    for _ in range(2):
        with pytest.raises(DecodeError, match="broken") as caught:
            cache.get("a", fail)
        assert caught.value.stage == stage
    assert len(computed) == times
