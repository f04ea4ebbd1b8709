"""How long a store is waited for, on which a guest's disk hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from drvm.core.clock import Clock
from drvm.core.errors import ObjectDamaged, ObjectMissing, StoreError

_T = TypeVar("_T")
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class Patience:
    """Asks again, besides what the store itself repeats, until ``limit_s`` have passed.

    A guest that gets an error from its disk takes harm, one that waits does not: so it also waits
    where the store says no, which may be expired credentials that are renewed. What is missing or
    damaged stays so and is raised at once. ``tell`` gets a line each time.
    """

    def __init__(self, clock: Clock, limit_s: float, tell: Callable[[str], None]) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._tell = tell

    @property
    def at_once(self) -> Patience:
        """None at all, for what nobody waits for."""
        return Patience(self._clock, 0, self._tell)

    def ask(self, call: Callable[[], _T]) -> _T:
        begun_s = self._clock.monotonic_s()
        tries = 0
        while True:
            try:
                return call()
            except (ObjectMissing, ObjectDamaged):
                raise
            except StoreError as error:
                pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                if self._clock.monotonic_s() - begun_s + pause_s > self._limit_s:
                    raise
                self._tell(f"the store does not answer, asked again in {pause_s:g} s: {error}")
            tries += 1
            self._clock.sleep(pause_s)
