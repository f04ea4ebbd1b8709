"""The event loop and forks, without a libvirtd."""

from __future__ import annotations

import signal
import threading

import libvirt

from drvm.host.libvirt_events import run_event_loop
from tests.killing import ENDED, end_at

_FORKS = 60


def test_a_fork_leaves_the_child_no_lock_that_the_loop_held() -> None:
    run_event_loop()
    busy = libvirt.virEventAddTimeout(0, lambda *_: None, None)  # it never rests
    try:
        for _ in range(_FORKS):
            assert end_at("", lambda _: _ask_the_loop()) == ENDED
    finally:
        libvirt.virEventRemoveTimeout(busy)


def test_the_loop_goes_on_after_a_fork() -> None:
    run_event_loop()
    assert end_at("", lambda _: None) == ENDED
    rang = threading.Event()
    timer = libvirt.virEventAddTimeout(0, lambda *_: rang.set(), None)
    try:
        assert rang.wait(60)
    finally:
        libvirt.virEventRemoveTimeout(timer)


def _ask_the_loop() -> None:
    signal.alarm(30)  # ends the child where it waits for a lock that nobody gives back
    timer = libvirt.virEventAddTimeout(-1, lambda *_: None, None)
    libvirt.virEventUpdateTimeout(timer, 10)
    libvirt.virEventRemoveTimeout(timer)
