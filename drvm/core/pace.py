"""A limit on bytes a second that threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.units import MIB


class Pace:
    """At most ``mib_per_s`` for all threads together, by a number or by what is asked for with
    each transfer; 0: as fast as it goes.

    Every transfer books its time behind those booked before, so the rate holds over any stretch,
    and what was not used is not saved up for a burst.
    """

    def __init__(self, mib_per_s: int | Callable[[], int], clock: Clock) -> None:
        self._rate = mib_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._booked_until_s = clock.monotonic_s()

    @property
    def limited(self) -> bool:
        """Now."""
        return self._bytes_per_s() > 0

    def wait(self, length: int) -> float:
        """Returns when ``length`` bytes may be moved, with the seconds that it slept: no more than
        all that is booked by other threads takes."""
        bytes_per_s = self._bytes_per_s()
        if not bytes_per_s:
            return 0.0
        with self._lock:
            now_s = self._clock.monotonic_s()
            start_s = max(now_s, self._booked_until_s)
            self._booked_until_s = start_s + length / bytes_per_s
        if start_s > now_s:
            self._clock.sleep(start_s - now_s)
        return start_s - now_s

    def _bytes_per_s(self) -> int:
        return (self._rate if isinstance(self._rate, int) else self._rate()) * MIB


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What all transfers of a store may take together."""

    upload: Pace
    download: Pace

    @staticmethod
    def of(
        upload_mib_s: int | Callable[[], int], download_mib_s: int | Callable[[], int], clock: Clock
    ) -> Bandwidth:
        """0: no limit."""
        return Bandwidth(Pace(upload_mib_s, clock), Pace(download_mib_s, clock))
