"""Signals are noted, and heeded by who waits."""

import os
import signal

import pytest

from pangu_sigma.launcher.signals import EndNow, Signals


def outcome(signals, *numbers):
    with signals:
        for number in numbers:
            os.kill(os.getpid(), number)
        try:
            return signals.stops(), signals.status
        except EndNow as end:
            return end.status, signals.status


@pytest.mark.parametrize(
    "numbers, expected",
    [
        ([], (0, None)),
        ([signal.SIGTERM], (1, 143)),
        ([signal.SIGHUP], (1, 129)),
        ([signal.SIGINT], (130, 130)),
        ([signal.SIGTERM, signal.SIGTERM], (143, 143)),
        ([signal.SIGTERM, signal.SIGINT], (130, 143)),
    ],
)
def test_what_a_signal_does(numbers, expected):
    assert outcome(Signals(), *numbers) == expected


def test_an_interrupt_that_stops():
    assert outcome(Signals(interrupt_stops=True), signal.SIGINT) == (1, 130)
    assert outcome(Signals(interrupt_stops=True), signal.SIGINT, signal.SIGINT) == (143, 130)


def test_what_was_ignored_stays_ignored_and_handlers_come_back():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        own = signal.getsignal(signal.SIGTERM)
        assert outcome(Signals(), signal.SIGHUP) == (0, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGHUP, before)
