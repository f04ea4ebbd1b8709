"""Processes that are not our children: such as drvm started to go on without it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


def end_process(pid: int, *, force: bool = False) -> None:
    """SIGTERM, or SIGKILL by ``force``, to a process that is not our child: who calls this knows
    that the number is still that process's. No error if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if force else signal.SIGTERM)


def running(argument: str) -> list[int]:
    """The processes of this user, but for us, that have ``argument`` as a whole word of their
    command line: such as were started detached, with a name that nobody else uses."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = place.stat().st_uid == os.geteuid() and int(place.name) != os.getpid()
            if own and argument.encode() in (place / "cmdline").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return sorted(found)


def end_running(argument: str, timeout_s: float = 10.0) -> None:
    """End them: SIGTERM, then SIGKILL when the time is up. None is left when it returns."""
    for pid in running(argument):
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    if pid in running(argument):  # still it, and not another by its number
                        signal.pidfd_send_signal(descriptor, number)
                        select.select([descriptor], [], [], timeout_s)
            finally:
                os.close(descriptor)
