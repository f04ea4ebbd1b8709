"""Who may run beside whom: limits, and no two runs on one machine."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

from drvm.daemon.task import Key, Task

MAX_RUNNING = 64
"""Threads are not for nothing; limits are far below it."""


class Slots:
    """What is free and what is taken. One thread at a time.

    Whoever is first and finds one of its limits taken is passed by those who need others. It does
    not wait for ever: what runs on its host holds all other limits that it needs, too, and gives
    them back with that one.
    """

    def __init__(self, limits: Mapping[str, int], running: Iterable[Task] = ()) -> None:
        self._limits = limits
        self._used: collections.Counter[str] = collections.Counter()
        self._taken: set[str] = {key for key, limit in limits.items() if limit <= 0}
        self._busy: collections.Counter[str] = collections.Counter()
        self._keys: set[Key] = set()
        for task in running:
            self.add(task)

    @property
    def full(self) -> bool:
        return len(self._keys) >= MAX_RUNNING

    def fits(self, task: Task) -> bool:
        return (
            self._taken.isdisjoint(task.uses)
            and self._busy.keys().isdisjoint(_machines(task))
            and task.key not in self._keys
            and len(self._keys) < MAX_RUNNING
        )

    def add(self, task: Task) -> None:
        self._keys.add(task.key)
        self._busy.update(_machines(task))
        for key in task.uses:
            self._used[key] += 1
            if self._used[key] >= self._limits.get(key, MAX_RUNNING):
                self._taken.add(key)

    def remove(self, task: Task) -> None:
        self._keys.discard(task.key)
        for machine in _machines(task):
            self._busy[machine] -= 1
            if not self._busy[machine]:
                del self._busy[machine]
        for key in task.uses:
            self._used[key] -= 1
            if self._used[key] < self._limits.get(key, MAX_RUNNING):
                self._taken.discard(key)


def _machines(task: Task) -> Iterable[str]:
    return task.touches or ((task.vm_uuid,) if task.vm_uuid else ())
