"""``python -m drvm.snapshot.thawing``: the thaw watchdog, a process of its own.

It is started before a freeze and thaws the guest if nobody else does: when drvm died (its end of
the pipe is closed, however that happened), or when the limit is up. Words on the pipe, one a line:

    drvm: {"uri": ..., "vm_uuid": ..., "limit_s": ...}     watchdog: ready, or busy (ends)
    drvm: freezing                                         watchdog: watching
    drvm: thawed                                           (ends)

Before ``freezing`` it touches nothing: a freeze that is in force then is somebody else's. A machine
has one watchdog at a time that may thaw it: that of an earlier capture, which was killed, would
thaw the freeze of a later one, whose point would not be what it is called. It has a session of its
own and ignores the signals by which groups of processes are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable
from typing import Protocol

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import HostError, UnknownVm
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain, DomainState
from drvm.snapshot.locks import shared_directory, try_lock

GIVE_UP_S = 900.0
"""So long a guest that does not thaw is tried, and a drvm that stands still is waited for."""

_AGENT_TIMEOUT_S = 5
_LIBVIRTS_AGENT_TIMEOUT_S = -2
_PAUSE_S = 0.5
_SETTLED_S = 2.0
"""A freeze whose sender was killed may still be on its way through libvirtd: so long the guest
must have been seen thawed."""

_TURN_S = 10.0
"""So long the watchdog of an earlier capture is waited for. One whose guest thaws takes 3 s."""

_TURN_POLL_S = 0.1
_MAX_WORD_BYTES = 4096


class Drvm(Protocol):
    """The process that freezes."""

    def hear(self, timeout_s: float | None) -> str | None:
        """Its next word, empty when it is gone; ``None`` when the time is up."""
        ...

    def say(self, word: str) -> None: ...


def watch(
    drvm: Drvm, domain: Domain, limit_s: float, clock: Clock, turn: Callable[[], bool]
) -> None:
    """From ``ready`` to the end. Returns when the guest was thawed by drvm or by us, or will not
    be in any bounded time: then the journal, which says ``frozen``, is what is left. ``turn`` says
    whether no other watchdog may thaw this guest any more; once it does, that holds until we end.
    """
    domain.state()  # a libvirtd that answers, and a machine that is there
    deadline_s = clock.monotonic_s() + _TURN_S
    while not turn():
        if clock.monotonic_s() >= deadline_s:
            drvm.say("busy")
            return
        if drvm.hear(_TURN_POLL_S) is not None:
            return
    drvm.say("ready")
    if drvm.hear(None) != "freezing":
        return
    drvm.say("watching")
    word = drvm.hear(limit_s)
    if word == "thawed":
        return
    deadline_s = clock.monotonic_s() + GIVE_UP_S
    _thaw(domain, clock, deadline_s)
    if word is None and drvm.hear(deadline_s - clock.monotonic_s()) != "thawed":
        # it stood still before its freeze, and has gone on since, or died
        _thaw(domain, clock, clock.monotonic_s() + GIVE_UP_S)


def _thaw(domain: Domain, clock: Clock, deadline_s: float) -> None:
    """Until the guest has been seen thawed for a while, or is gone."""
    thawed_since_s: float | None = None
    while clock.monotonic_s() < deadline_s:
        try:
            if domain.state() is DomainState.SHUTOFF:
                return
            thawed = domain.filesystems_frozen() is False
            if not thawed:
                domain.set_agent_timeout(_AGENT_TIMEOUT_S)
                domain.thaw()
        except UnknownVm:
            return
        except HostError:
            thawed = False
        now_s = clock.monotonic_s()
        if not thawed:
            thawed_since_s = None
        elif thawed_since_s is None:
            thawed_since_s = now_s
        elif now_s - thawed_since_s >= _SETTLED_S:
            with contextlib.suppress(HostError, UnknownVm):
                domain.set_agent_timeout(_LIBVIRTS_AGENT_TIMEOUT_S)
            return
        clock.sleep(_PAUSE_S)


class _Pipe:
    """Implements ``Drvm`` by standard input and output."""

    def __init__(self) -> None:
        self._heard = b""

    def hear(self, timeout_s: float | None) -> str | None:
        while b"\n" not in self._heard:
            if not select.select([0], [], [], timeout_s)[0]:
                return None
            data = os.read(0, _MAX_WORD_BYTES)
            self._heard += data
            if not data or len(self._heard) > _MAX_WORD_BYTES:
                return ""
        word, _, self._heard = self._heard.partition(b"\n")
        return word.decode(errors="replace")

    def say(self, word: str) -> None:
        with contextlib.suppress(OSError):  # who does not listen any more is soon seen to be gone
            os.write(1, word.encode() + b"\n")


def _turn(vm_uuid: str) -> Callable[[], bool]:
    """By a lock that ends with this process."""
    directory = shared_directory()
    if directory is None:
        return lambda: True
    return lambda: try_lock(directory / f"{vm_uuid}.thaw") is not None


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    pipe = _Pipe()
    order = json.loads(pipe.hear(None) or "{}")
    if order:
        domain = LibvirtHost(order["uri"]).domain(order["vm_uuid"])
        watch(pipe, domain, order["limit_s"], SystemClock(), _turn(domain.uuid))
    os._exit(0)  # nobody waits for libvirt's threads


if __name__ == "__main__":
    main()
