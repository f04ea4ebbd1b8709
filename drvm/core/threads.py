"""Threads that end before what they work with is released."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_In = TypeVar("_In")
_AT_ONCE = 8
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Pool(ThreadPoolExecutor):
    """What is logged in its threads is about the same run as what submitted the work."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return super().submit(in_context(fn), *args, **kwargs)


def in_context(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """``call``, to be called by another thread once, with the context variables of now."""
    context = contextvars.copy_context()

    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return context.run(call, *args, **kwargs)

    return run


class Threads:
    """A pool of threads that never outlive it, whatever signals come.

    ``begin`` runs first in each thread. Every call that a thread makes
    must be bounded, since ``end`` waits for it.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], None] | None = None) -> None:
        self._pool = Pool(count, thread_name_prefix=name, initializer=begin)

    def submit(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        with _signals_later():  # a thread whose start they interrupt would be known to nobody
            return self._pool.submit(call, *args, **kwargs)

    def end(self) -> None:
        """None of the threads runs any more when this returns; what had not begun never does.

        Signals that come meanwhile are handled when the wait is over: a thread that outlived it
        could write to a file descriptor that is somebody else's by then.
        """
        with _signals_later():
            self._pool.shutdown(wait=True, cancel_futures=True)


def mapped(work: Callable[[_In], _T], items: Sequence[_In], *, waiting: int = 256) -> Iterator[_T]:
    """What ``work`` makes of the items, in their order, by a few threads; at most so many results
    are ``waiting`` for whoever takes them. The first error ends it."""
    with Pool(_AT_ONCE, thread_name_prefix="mapped") as pool:
        for start in range(0, len(items), waiting):
            yield from pool.map(work, items[start : start + waiting])


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Handlers raise out of whatever runs, and Python 3.11 takes a thread for ended whose
    ``join`` they interrupt (``Thread._wait_for_tstate_lock``)."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which is where handlers run
        return
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    mine = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in mine:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)
    for received, frame in came:
        mine[signal.Signals(received)](received, frame)
