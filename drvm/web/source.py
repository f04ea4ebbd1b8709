"""What the dashboard needs of the daemon, in words of its own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from drvm.report.input import ReportInput
from drvm.report.model import DrillResult
from drvm.runs.model import Run

Action = Literal["backup", "drill"]
ACTIONS: tuple[Action, ...] = ("backup", "drill")


@dataclass(frozen=True, slots=True)
class PointRow:
    """A good point. ``disk_bytes``: its disks as large as the guest sees them; ``stored_bytes``:
    what it added to the repository."""

    id: str
    vm: str
    created: dt.datetime
    consistency: str
    engine: str
    disks: int
    disk_bytes: int
    stored_bytes: int
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """Called by several threads at once; each call is bounded, and raises ``DrvmError``."""

    def report(self) -> ReportInput:
        """As it is now; may take seconds. The pictures of drills need not be in it."""
        ...

    def running(self) -> Sequence[Run]:
        """Asked for every second."""
        ...

    def recent(self, limit: int, vm_uuid: str | None = None) -> Sequence[Run]:
        """Finished ones, the last begun first."""
        ...

    def points(self, vm_uuid: str) -> Sequence[PointRow]:
        """The latest first."""
        ...

    def picture(self, drill: DrillResult) -> bytes | None:
        """The guest's screen as PNG."""
        ...

    def may_start(self, vm_uuid: str) -> Sequence[Action]:
        """What ``start`` would take for this VM now."""
        ...

    def start(self, action: Action, vm_uuid: str) -> str:
        """Returns the run's id as soon as it is certain to begin. Raises ``Locked`` where the same
        runs or waits, ``UsageError`` where no policy allows it."""
        ...

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        ...
