"""Asking an NBD server whether it is there."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import nbd

from drvm.core.clock import SystemClock


def is_silent(path: Path, limit_s: float) -> bool:
    """Whether there is a server at the socket ``path`` that says nothing to whoever connects, such
    as one that waits for a storage that is gone: libnbd would wait with it, without end."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(limit_s)
        try:
            probe.connect(str(path))
            probe.recv(1)
        except (TimeoutError, BlockingIOError):  # its queue is full
            return True
        except OSError:
            return False
    return False


def nbd_answers(uri: str, limit_s: float) -> bool:
    """Whether a server has the export that ``uri`` names, and says so in time."""
    handle = nbd.NBD()
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + limit_s
    try:
        handle.aio_connect_uri(uri)
        while handle.aio_is_connecting():
            left_s = deadline_s - clock.monotonic_s()
            if left_s <= 0 or handle.poll(int(left_s * 1000) + 1) == 0:
                return False
        ready = bool(handle.aio_is_ready())
    except nbd.Error:
        return False
    if ready:
        with contextlib.suppress(nbd.Error):
            handle.shutdown()
    return ready
