"""SIGKILL at a named step, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from drvm.core.progress import Trace

ENDED, FAILED = 0, 1
KILLED = (-signal.SIGKILL, -signal.SIGALRM)


def end_at(step: str, work: Callable[[Trace], object], delay_s: float = 0.0) -> int:
    """``work`` in a child of this process, which is killed when the trace comes to ``step``, or so
    much later. One of ``KILLED``, or ``ENDED`` or ``FAILED`` where it was not."""

    def trace(reached: str) -> None:
        if reached == step and delay_s:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, delay_s)
        elif reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = FAILED
        with contextlib.suppress(BaseException):
            work(trace)
            code = ENDED
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(step: str, work: Callable[[Trace], object], delay_s: float = 0.0) -> None:
    """As ``end_at``; it must have been killed."""
    expected = -signal.SIGALRM if delay_s else -signal.SIGKILL
    assert end_at(step, work, delay_s) == expected, f"{step} was not reached"
