"""What a machine reads when it boots, kept for its next boot from another point.

A hint is a list of units of 64 KiB of one disk, read in the first minutes. It lies in the cache
directory and is worth what a cache is: whatever it says, only stored blocks are fetched, verified
as ever, and no more than a hint may name. ::

    "drvmboot" | unit numbers (u32), ascending
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from drvm.core.clock import Clock
from drvm.core.files import write_durably
from drvm.core.units import KIB

UNIT_BYTES = 64 * KIB
MOST_UNITS = 8192
"""512 MiB of a disk."""
_LEAST_UNITS = 16
"""Less is no boot: somebody looked at the disk."""
_WINDOW_S = 180.0
_MAGIC = b"drvmboot"
_MAX_BYTES = len(_MAGIC) + 4 * MOST_UNITS


def read_hint(path: Path, size_bytes: int) -> list[int]:
    """The units of a disk of this size that a hint names; none where there is none, or where the
    file is not one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError:
        return []
    if not data.startswith(_MAGIC) or len(data) > _MAX_BYTES or len(data) % 4:
        return []
    units = np.frombuffer(data, dtype="<u4", offset=len(_MAGIC)).astype(np.int64)
    if bool((np.diff(units) <= 0).any()):
        return []
    return [unit for unit in units.tolist() if unit * UNIT_BYTES < size_bytes]


def write_hint(path: Path, units: set[int]) -> None:
    """Replace what is there. Raises ``OSError``."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, _MAGIC + np.array(sorted(units), dtype="<u4").tobytes())


class Recorder:
    """Notes what is read from the first read on, for three minutes or up to ``MOST_UNITS``, and
    gives it to ``save`` once. For several threads."""

    def __init__(self, clock: Clock, save: Callable[[set[int]], None]) -> None:
        self._clock = clock
        self._save = save
        self._units: set[int] = set()
        self._until_s: float | None = None
        self._over = False
        self._lock = threading.Lock()

    def seen(self, offset: int, length: int) -> None:
        if self._over or length <= 0:
            return
        now_s = self._clock.monotonic_s()
        with self._lock:
            if self._until_s is None:
                self._until_s = now_s + _WINDOW_S
            if now_s < self._until_s and len(self._units) < MOST_UNITS:
                units = range(offset // UNIT_BYTES, (offset + length - 1) // UNIT_BYTES + 1)
                self._units.update(units[: MOST_UNITS - len(self._units)])
                return
        self.end()

    def end(self) -> None:
        """Nothing more will be noted. May be called again."""
        with self._lock:
            over, self._over = self._over, True
        if not over and len(self._units) >= _LEAST_UNITS:
            with contextlib.suppress(OSError):  # the next boot is slower, and that is all
                self._save(self._units)
