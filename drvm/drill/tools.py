"""What drills work with, and what a machine is in its group."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.progress import Progress, Trace
from drvm.drill.checks.base import Exports
from drvm.drill.disks import Disks
from drvm.host.model import Host
from drvm.repository.manifest import Manifest
from drvm.snapshot.space import free_bytes


@dataclass(frozen=True, slots=True)
class Member:
    """What a machine is in its group. ``stage`` counts from 1; ``one_instant``: the points of all
    its machines were taken together; ``alike``: the others that had an address of this one's, or
    are asked at one; ``absent``: lines about the members that are not drilled with it."""

    group: str
    stage: int
    one_instant: bool
    alike: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


Exporting = Callable[[Manifest], AbstractContextManager[Exports]]
"""Serves the disks of a point, read-only."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What drills work with."""

    host: Host
    disks: Disks
    clock: Clock
    progress: Progress
    trace: Trace
    exports: Exporting | None = None
    free: Callable[[Path], int] = free_bytes


@dataclass(frozen=True, slots=True)
class Titled:
    """Implements ``Progress``: of one of several machines, by whose name each stage begins."""

    progress: Progress
    title: str

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self.progress.stage(f"{self.title}: {title}", total_bytes)

    def advance(self, done_bytes: int) -> None:
        self.progress.advance(done_bytes)


@dataclass(frozen=True, slots=True)
class Heeding:
    """Implements ``Clock``: a sleep ends by ``Interrupted`` where whoever is told of the progress
    wants an end."""

    clock: Clock
    progress: Progress

    def now(self) -> dt.datetime:
        return self.clock.now()

    def monotonic_s(self) -> float:
        return self.clock.monotonic_s()

    def sleep(self, seconds: float) -> None:
        self.progress.advance(0)
        self.clock.sleep(seconds)
