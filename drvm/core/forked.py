"""Work on hostile input in a process that may do nothing, and not for long."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
from collections.abc import Callable

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed

_NOBODY = 65534
_CHUNK_BYTES = 1 << 16
_clock = SystemClock()


def forked(work: Callable[[], bytes], *, limit_s: float, max_bytes: int) -> bytes | None:
    """What ``work`` returns, done in a fork of this process, which must have one thread only: as
    the user nobody where we are root. ``None`` when the time is up; then it is ended.

    Raises ``ProcessFailed`` where it ends in another way, or says more than ``max_bytes``.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _in_child(work, writing)
    os.close(writing)
    try:
        return _heard(reading, limit_s, max_bytes)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _in_child(work: Callable[[], bytes], writing: int) -> None:
    """Never returns: what is further up is the parent's."""
    try:
        if os.geteuid() == 0:
            user = _nobody()
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        said = memoryview(b"+" + work())
        while said:
            said = said[os.write(writing, said) :]
    finally:
        os._exit(0)


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return _NOBODY


def _heard(reading: int, limit_s: float, max_bytes: int) -> bytes | None:
    deadline_s = _clock.monotonic_s() + limit_s
    heard = b""
    while len(heard) <= max_bytes:
        if not select.select([reading], [], [], max(0.0, deadline_s - _clock.monotonic_s()))[0]:
            return None
        data = os.read(reading, _CHUNK_BYTES)
        if not data:
            if not heard:
                raise ProcessFailed("the process that asks the guest has ended")
            return heard[1:]
        heard += data
    raise ProcessFailed("the process that asks the guest says too much")
