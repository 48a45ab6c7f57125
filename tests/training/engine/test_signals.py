"""Requests to stop: the first is kept, the second interrupts, and one that is ignored stays so."""

import signal
import threading

import pytest

from lambdanets.training.engine.signals import StopSignal

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def ignored():
    """SIGINT as in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored(ignored):
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("number", BOTH)
def test_the_first_is_kept_and_the_second_interrupt_ends(number):
    before = [signal.getsignal(one) for one in BOTH]
    with StopSignal() as stop:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(one) for one in BOTH] == before


def test_another_thread_has_its_own_way_to_stop():
    before = [signal.getsignal(one) for one in BOTH]
    found = []

    def enter():
        with StopSignal():
            found.extend(signal.getsignal(one) for one in BOTH)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == before


@pytest.mark.parametrize("number", BOTH)
def test_the_outer_one_hears_what_the_inner_one_caught(number):
    """As of a training that is finished before it looks, within a study that has more to do."""
    with StopSignal(lambda number: pytest.fail("it is raised in the inner one")) as outer:
        with StopSignal():
            assert outer.number is None
        with StopSignal():
            signal.raise_signal(number)
        assert outer.number == number
        with StopSignal():
            signal.raise_signal(signal.SIGTERM)
        assert outer.number == number  # the first
