"""What holds for every read of a capture: its pace, and whether it may still be believed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.units import MIB


class Pace:
    """At most ``mib_per_s`` for all threads together; 0: as fast as it goes.

    Every read books its time behind those booked before, so the rate holds over any stretch, and
    what was not used is not saved up for a burst.
    """

    def __init__(self, mib_per_s: int, clock: Clock) -> None:
        self._bytes_per_s = mib_per_s * MIB
        self._clock = clock
        self._lock = threading.Lock()
        self._booked_until_s = clock.monotonic_s()

    def wait(self, length: int) -> None:
        """Returns when ``length`` bytes may be read. Sleeps no longer than all that is booked by
        other threads takes."""
        if not self._bytes_per_s:
            return
        with self._lock:
            now_s = self._clock.monotonic_s()
            start_s = max(now_s, self._booked_until_s)
            self._booked_until_s = start_s + length / self._bytes_per_s
        if start_s > now_s:
            self._clock.sleep(start_s - now_s)


def _always() -> None:
    """For captures that nobody gives up early."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``pace``: shared by the readers of all disks. ``still_frozen`` is asked after every read,
    and raises ``CaptureError`` where what was read may not be given away."""

    pace: Pace
    still_frozen: Callable[[], None] = _always
