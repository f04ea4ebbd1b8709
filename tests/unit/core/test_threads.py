"""What threads use may be released behind ``Threads.end``, whatever signals come meanwhile."""

from __future__ import annotations

import signal
import threading

import pytest

from drvm.core.threads import Threads


def test_threads_have_ended_though_signals_came_while_they_were_waited_for() -> None:
    ended = threading.Event()
    waited_for = threading.Event()
    pool = Threads(1, "test")

    def work() -> None:
        assert waited_for.wait(60)
        for _ in range(3):  # CPython runs handlers in the main thread, which waits
            signal.raise_signal(signal.SIGINT)
        ended.set()

    def watch() -> None:
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            pass
        waited_for.set()

    pool.submit(work)
    never = pool.submit(ended.clear)
    threading.Thread(target=watch).start()
    with pytest.raises(KeyboardInterrupt):
        pool.end()
    assert ended.is_set()
    assert never.cancelled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_than_the_main_one_end_pools_too() -> None:
    done = []

    def end() -> None:
        pool = Threads(1, "test")
        pool.submit(done.append, 1)
        pool.end()
        done.append(2)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join(60)
    assert done[-1] == 2
