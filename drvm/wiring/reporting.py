"""What a report is made of, gathered from the repository, from the hosts that answer, and from
what jobs did here."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence

from drvm import __version__
from drvm.config.policies import PolicyConfig
from drvm.config.settings import Settings
from drvm.core.clock import parse_rfc3339
from drvm.core.errors import RepositoryError
from drvm.core.text import printable
from drvm.report.input import (
    DAYS_SHOWN,
    CheckRow,
    JobRow,
    ReportInput,
    RunRow,
    VmRow,
)
from drvm.report.model import DrillResult, decode_drill
from drvm.repository.checks import CIRCLE, History, Past
from drvm.repository.points import Point
from drvm.runs.model import Run
from drvm.schedule.cron import fires_between
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import FleetVm, fleet_of

GRACE = dt.timedelta(days=1)
"""How long after its schedule's time something may still not have begun: retries, blackout windows
and long queues are no reason to call anybody."""

_WINDOWS = tuple(dt.timedelta(days=days) for days in (1, 8, 32, 400))
_MAX_FIRES = 2000


def gather_report(wiring: Wiring, runs: Sequence[Run] = ()) -> ReportInput:
    """``runs``: the last finished run of each job and VM. Hosts that don't answer are said to be
    so. Raises the store's errors."""
    now = wiring.clock.now()
    repository = wiring.repository()
    listing = repository.points()
    found = fleet_of(wiring, listing.points)
    fleet, unreachable = found.vms, [(uri, error.message) for uri, error in found.away]
    due = _DueTimes(wiring.settings, now)
    by_vm: dict[str, list[Point]] = {}
    for point in listing.points:
        by_vm.setdefault(point.manifest.vm_uuid, []).append(point)
    return ReportInput(
        generated=now,
        repository=repository.store.location,
        vms=tuple(_row(vm, by_vm.get(vm.uuid, []), due, gone=not unreachable) for vm in fleet),
        drills=tuple(_drills(wiring)),
        drvm_version=__version__,
        runs=tuple(_run_row(run) for run in runs if _is_known(run, fleet, wiring.settings)),
        jobs=tuple(_jobs(due, runs)),
        checks=tuple(_checks(repository.checks.history())),
        problems=tuple(printable(problem, 300) for problem in listing.problems),
        unreachable=tuple(unreachable),
    )


class _DueTimes:
    """Until when what has a schedule should have begun: its last fire but those of ``GRACE``."""

    def __init__(self, settings: Settings, now: dt.datetime) -> None:
        self.settings, self.now = settings, now
        self._until = now - GRACE
        self._known: dict[tuple[str, str], dt.datetime | None] = {}

    def of(self, schedule: str | None, time_zone: str) -> dt.datetime | None:
        """``None`` without a schedule, or where it did not fire for more than a year."""
        if schedule is None:
            return None
        key = (schedule, time_zone)
        if key not in self._known:
            self._known[key] = self._last_fire(schedule, time_zone)
        return self._known[key]

    def drill(self, policy: str | None) -> dt.datetime | None:
        """Of the drills of this policy."""
        found = next((one for one in self.settings.policies if one.name == policy), None)
        return self._drill(found) if found is not None else None

    def _drill(self, policy: PolicyConfig) -> dt.datetime | None:
        drill = policy.drill
        return self.of(drill.schedule, policy.time_zone) if drill is not None else None

    def _last_fire(self, schedule: str, time_zone: str) -> dt.datetime | None:
        for window in _WINDOWS:
            fires = fires_between(
                schedule, time_zone, self._until - window, self._until, limit=_MAX_FIRES
            )
            if fires:
                return fires[-1]
        return None


def _row(vm: FleetVm, points: Sequence[Point], due: _DueTimes, *, gone: bool) -> VmRow:
    last = vm.last.manifest if vm.last is not None else None
    return VmRow(
        vm=vm.name,
        vm_uuid=vm.uuid,
        host=vm.host or ("gone" if gone else "not seen"),
        policy=vm.policy,
        last_point=last.id if last is not None else None,
        last_point_created=parse_rfc3339(last.created) if last is not None else None,
        consistency=last.consistency if last is not None else None,
        rpo_state=vm.rpo.state.value,
        rpo_age_seconds=vm.rpo.age_seconds,
        rpo_target_seconds=vm.rpo.target_seconds,
        gone=gone and vm.host is None,
        points=vm.points,
        first_point_created=parse_rfc3339(points[0].manifest.created) if points else None,
        points_per_day=_per_day(points, due),
        disk_bytes=sum(disk.size_bytes for disk in last.disks) if last is not None else 0,
        stored_bytes=sum(point.manifest.stored_bytes for point in points),
        drill_due=due.drill(vm.policy),
    )


def _per_day(points: Sequence[Point], due: _DueTimes) -> tuple[int, ...]:
    """RFC 3339 as manifests have it begins with the day in UTC."""
    counted = Counter(point.manifest.created[:10] for point in points)
    today = due.now.date()
    days = (today - dt.timedelta(days=back) for back in reversed(range(DAYS_SHOWN)))
    return tuple(counted[day.isoformat()] for day in days)


def _drills(wiring: Wiring) -> Iterator[DrillResult]:
    for record in wiring.repository().drills.records():
        with contextlib.suppress(RepositoryError):  # of a newer drvm, or damaged
            yield decode_drill(record)


def _is_known(run: Run, fleet: Sequence[FleetVm], settings: Settings) -> bool:
    """Whether the job is still one of the config, and the VM still one of its policy."""
    if not run.vm_uuid:
        return run.job in _repository_jobs(settings)
    policies = {vm.uuid: vm.policy for vm in fleet}
    return run.job == f"{run.kind} {policies.get(run.vm_uuid)}"


def _repository_jobs(settings: Settings) -> dict[str, tuple[str, str | None, str]]:
    """Job -> (kind, schedule, time zone)."""
    jobs: dict[str, tuple[str, str | None, str]] = {
        "prune": ("prune", settings.prune.schedule, settings.prune.time_zone),
        "gc": ("gc", settings.gc.schedule, settings.gc.time_zone),
        "check": ("check", settings.check.schedule, settings.check.time_zone),
        "locks": ("locks", None, "UTC"),
    }
    for copy in settings.copies:
        jobs[f"copy {copy.name}"] = ("copy", copy.schedule, copy.time_zone)
    return jobs


def _jobs(due: _DueTimes, runs: Sequence[Run]) -> Iterator[JobRow]:
    """Those with a schedule. What was never done is due once anything was for longer than that."""
    oldest = min((run.started for run in runs), default=None)
    for job, (kind, schedule, time_zone) in _repository_jobs(due.settings).items():
        if schedule is None:
            continue
        good = [run.started for run in runs if run.job == job and run.state in ("done", "warned")]
        moment = due.of(schedule, time_zone)
        if not good and (oldest is None or moment is None or oldest >= moment):
            moment = None
        yield JobRow(job=job, kind=kind, due=moment, last_good=max(good, default=None))


def _run_row(run: Run) -> RunRow:
    return RunRow(
        job=run.job,
        kind=run.kind,
        vm=run.vm,
        vm_uuid=run.vm_uuid,
        host=run.host,
        started=run.started,
        ended=run.ended,
        state=run.state,
        attempt=run.attempt,
        message=run.message,
        hint=run.hint,
        result=run.result,
        stored_bytes=run.stored_bytes,
    )


def _checks(history: History) -> Iterator[CheckRow]:
    """The oldest first. What was found damaged stands until all of its arc was read again."""
    for number, past in enumerate(history.runs):
        record = past.record
        yield CheckRow(
            began=past.began,
            host=record.host,
            share=round(record.arc.length / CIRCLE, 4),
            packs=record.packs,
            read_bytes=record.read_bytes,
            damaged_packs=record.damaged,
            stands=record.damaged > 0 and not _read_again(past, history.runs[number + 1 :]),
        )


def _read_again(past: Past, later: Sequence[Past]) -> bool:
    """Whether later runs together read all of the arc. What is damaged still is then theirs."""
    arc = past.record.arc
    spans = []
    for newer in later:
        begins = (newer.record.arc.start - arc.start) % CIRCLE
        spans += [(begin, begin + newer.record.arc.length) for begin in (begins - CIRCLE, begins)]
    reached = 0
    for begin, end in sorted(spans):
        if begin > reached:
            break
        reached = max(reached, end)
    return reached >= arc.length
