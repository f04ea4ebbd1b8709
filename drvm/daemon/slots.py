"""Who may run beside whom: limits, and no two runs on one machine."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

from drvm.daemon.task import Key, Task

MAX_RUNNING = 64
"""Threads are not for nothing; limits are far below it."""


class Slots:
    """What is free at one look.

    Whoever is first and finds one of its limits taken is passed by those who need others. It does
    not wait for ever: what runs on its host holds all other limits that it needs, too, and gives
    them back with that one.
    """

    def __init__(self, limits: Mapping[str, int], running: Iterable[Task]) -> None:
        self._limits = limits
        self._used: collections.Counter[str] = collections.Counter()
        self._busy: set[str] = set()
        self._keys: set[Key] = set()
        self._count = 0
        for task in running:
            self._add(task)

    @property
    def full(self) -> bool:
        return self._count >= MAX_RUNNING

    def fits(self, task: Task) -> bool:
        if self.full or task.key in self._keys or not self._busy.isdisjoint(_machines(task)):
            return False
        limits, used = self._limits, self._used
        return all(key not in limits or used[key] < limits[key] for key in task.uses)

    def take(self, task: Task) -> bool:
        """Whether it fits; then its slots are taken."""
        fits = self.fits(task)
        if fits:
            self._add(task)
        return fits

    def _add(self, task: Task) -> None:
        self._count += 1
        self._used.update(task.uses)
        self._busy.update(_machines(task))
        self._keys.add(task.key)


def _machines(task: Task) -> Iterable[str]:
    return task.touches or ((task.vm_uuid,) if task.vm_uuid else ())
