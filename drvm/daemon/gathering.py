"""The repository and the hosts, held open for those who look at them again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from drvm.report.input import ReportInput
from drvm.runs.log import RunLog
from drvm.wiring.assembly import Wiring
from drvm.wiring.reporting import gather_report

T = TypeVar("T")


class Gathering:
    """For any thread; one at a time gathers. Whatever fails is opened anew the next time."""

    def __init__(
        self, open_wiring: Callable[[], AbstractContextManager[Wiring]], history: RunLog
    ) -> None:
        self._open_wiring = open_wiring
        self._history = history
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._wiring: Wiring | None = None

    def report(self) -> ReportInput:
        """Raises the store's errors."""
        return self.ask(lambda wiring: gather_report(wiring, self._history.latest()))

    def ask(self, question: Callable[[Wiring], T]) -> T:
        with self._lock:
            try:
                if self._wiring is None:
                    self._wiring = self._opened.enter_context(self._open_wiring())
                return question(self._wiring)
            except Exception:
                self._let_go()
                raise

    def close(self) -> None:
        """Not waited for: who asks just now may take long, and the process ends."""
        if self._lock.acquire(timeout=1.0):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        self._wiring = None
        self._opened.close()
