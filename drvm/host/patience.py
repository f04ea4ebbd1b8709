"""Calls that libvirtd may never come back from: a guest whose agent floods its channel keeps the
call busy beyond any time-out that libvirtd was given (seen with 9.0)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from drvm.core.errors import AgentError

T = TypeVar("T")


def within(limit_s: float, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises. Raises ``AgentError`` when the time is up; the call then
    goes on in a thread that nobody waits for, so only what may happen late may be called so."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            done.put((None, error))

    threading.Thread(target=run, name="agent", daemon=True).start()
    try:
        value, error = done.get(timeout=limit_s)
    except queue.Empty:
        words = f"libvirtd did not come back from the guest's agent within {limit_s:g} s"
        raise AgentError(words) from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
