"""Requests to stop, and SIGTERM as an exception."""

import os
import signal
import threading

import pytest

from densefeat.base.signals import Interrupted, raise_on_sigterm, stop_on_signal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def test_the_first_signal_asks_to_stop_and_the_second_one_stops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_get_no_request() -> None:
    seen = []

    def work() -> None:
        with stop_on_signal() as stop, raise_on_sigterm():
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_sigterm_as_an_exception() -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as raised, raise_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_sigterm_is_left_alone() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with raise_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
