"""What a report is made of: the fleet, its drills, what jobs did, and what the repository holds.

Values only, gathered by ``drvm/wiring/reporting.py``. Moments are aware, in UTC.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from typing import Literal

import msgspec

from drvm.core.clock import CLOCK_TOLERANCE
from drvm.report.model import DrillResult

RpoWord = Literal["met", "missed", "never", "no-target", "unknown"]

DAYS_SHOWN = 42
"""How many days of points a VM's picture shows."""


class VmRow(msgspec.Struct, frozen=True, kw_only=True):
    """One VM in the fleet at a glance.

    ``host``: its URI; ``gone``: it is on none of the hosts, and all of them answered; then
    ``elsewhere``: another host's drvm took its last point, so that it may well be there.
    ``machine``: false for image files and imports, which are stored by hand. ``doubt``: why nobody
    can tell its policy, else empty. ``held``: why nothing backs it up for now, else empty.
    ``rpo_age_seconds``: what would be lost now.
    ``points_per_day``: of the good points that are kept, how many show an instant of each of the
    last ``DAYS_SHOWN`` days (UTC), the oldest first. ``disk_bytes``: the disks of its last point,
    as large as the guest sees them; ``stored_bytes``: what its points added to the repository.
    ``backup_due``, ``drill_due``: one should have begun since then.
    """

    vm: str
    vm_uuid: str
    host: str
    policy: str | None
    last_point: str | None
    last_point_created: dt.datetime | None
    consistency: str | None
    rpo_state: RpoWord
    rpo_age_seconds: float | None
    rpo_target_seconds: float | None
    gone: bool = False
    elsewhere: bool = False
    machine: bool = True
    doubt: str = ""
    held: str = ""
    points: int = 0
    first_point_created: dt.datetime | None = None
    points_per_day: tuple[int, ...] = ()
    disk_bytes: int = 0
    stored_bytes: int = 0
    backup_due: dt.datetime | None = None
    drill_due: dt.datetime | None = None


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """The last run of a job that ended: of one VM, or of the repository where ``vm_uuid`` is
    empty. ``retry_at``: when it is tried again, where it is."""

    job: str
    kind: str
    vm: str
    vm_uuid: str
    host: str
    started: dt.datetime
    ended: dt.datetime | None
    state: str
    attempt: int = 1
    message: str = ""
    hint: str = ""
    result: str = ""
    stored_bytes: int = 0
    retry_at: dt.datetime | None = None


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job of the repository that has a schedule. ``due``: it should have been done since then;
    ``None`` where nobody can tell. ``last_good``: when it last began and was done. ``behind``: of a
    copy, how many points are younger than that."""

    job: str
    kind: str
    due: dt.datetime | None
    last_good: dt.datetime | None
    behind: int | None = None


class CheckRow(msgspec.Struct, frozen=True, kw_only=True):
    """A check that read data, on any host. ``share``: of all, 0 to 1. ``stands``: nothing that it
    found damaged was read and found whole since."""

    began: dt.datetime
    host: str
    share: float
    packs: int
    read_bytes: int
    damaged_packs: int
    stands: bool


class StorageSample(msgspec.Struct, frozen=True, kw_only=True):
    """``stored_bytes``: all packs; ``protected_bytes``: the disks of each VM's last point, as
    large as guests see them; ``points_bytes``: those of all points together."""

    taken: dt.datetime
    stored_bytes: int
    protected_bytes: int
    points_bytes: int
    points: int


class ReportInput(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """``repository``: its URL, which never holds a secret; ``host``: whose drvm looked.
    Drills in any order. ``storage``: the oldest first, the last one is now. ``problems``: what the
    repository says that should be readable and is not, a line each. ``unreachable``: hosts, with
    the reason."""

    generated: dt.datetime
    repository: str
    vms: tuple[VmRow, ...]
    drills: tuple[DrillResult, ...]
    drvm_version: str = ""
    host: str = ""
    runs: tuple[RunRow, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    storage: tuple[StorageSample, ...] = ()
    problems: tuple[str, ...] = ()
    unreachable: tuple[tuple[str, str], ...] = ()

    def drills_of(self, vm_uuid: str) -> tuple[DrillResult, ...]:
        """The latest first; those of a clock that was wrong, which began in the future, last."""
        return self._by_vm.get(vm_uuid, ())

    def latest_first(self) -> tuple[DrillResult, ...]:
        return self._latest_first

    @functools.cached_property
    def _latest_first(self) -> tuple[DrillResult, ...]:
        now = self.generated + CLOCK_TOLERANCE

        def order(drill: DrillResult) -> tuple[bool, dt.datetime, str]:
            return drill.started <= now, drill.started, drill.id

        return tuple(sorted(self.drills, key=order, reverse=True))

    @functools.cached_property
    def _by_vm(self) -> Mapping[str, tuple[DrillResult, ...]]:
        mine: dict[str, list[DrillResult]] = {}
        for drill in self._latest_first:
            mine.setdefault(drill.vm_uuid, []).append(drill)
        return {uuid: tuple(drills) for uuid, drills in mine.items()}
