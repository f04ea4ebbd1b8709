"""Asking an NBD server whether it is there."""

from __future__ import annotations

import contextlib

import nbd

from drvm.core.clock import SystemClock


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
