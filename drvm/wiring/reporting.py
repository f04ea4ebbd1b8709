"""What a report is made of, gathered from the repository, from the hosts that answer, and from
what jobs did here."""

from __future__ import annotations

import datetime as dt
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from drvm import __version__
from drvm.core.clock import CLOCK_TOLERANCE, parse_rfc3339, rfc3339
from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError
from drvm.core.text import printable
from drvm.core.threads import mapped
from drvm.core.units import MIB
from drvm.report.drill_views import shown_drill_ids
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
from drvm.repository.layout import DRILLS
from drvm.repository.points import Point
from drvm.repository.remembered import Remembered
from drvm.repository.repository import Repository
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.runs.model import Run
from drvm.schedule.timing import NO_RETRY
from drvm.snapshot.imagefiles import ImageFilesEngine
from drvm.store.base import ObjectInfo
from drvm.wiring.assembly import Wiring
from drvm.wiring.due import DueTimes
from drvm.wiring.fleet import FleetVm, fleet_of
from drvm.wiring.growth import storage_of
from drvm.wiring.remembering import remembered_of
from drvm.wiring.timetable import PlannedJob, backup_name, drill_name, group_subject, planned_jobs

_GOOD = ("done", "warned")
_PICTURES_BYTES = 64 * MIB


def gather_report(
    wiring: Wiring, runs: Sequence[Run] = (), *, pictures: bool = False
) -> ReportInput:
    """``runs``: the last finished run of each job and VM. Drills have their pictures only where
    they are asked for, and where a page shows them. Hosts that don't answer are said to be so.
    What was read of points, drills and checks before is not read again by the same process, as long
    as the repository lists it as it was. Raises the store's errors."""
    now = wiring.clock.now()
    repository = wiring.repository()
    remembered = remembered_of(repository)
    listing = repository.points(remembered=remembered)
    found = fleet_of(wiring, listing.points)
    fleet, unreachable = found.vms, [(uri, error.message) for uri, error in found.away]
    jobs = planned_jobs(wiring.settings)
    due = DueTimes(jobs, now)
    by_vm: dict[str, list[Point]] = {}
    for point in listing.points:
        by_vm.setdefault(point.manifest.vm_uuid, []).append(point)
    rows = tuple(
        _row(repository, vm, by_vm.get(vm.uuid, []), due, gone=not unreachable) for vm in fleet
    )
    report = ReportInput(
        generated=now,
        repository=repository.store.location,
        vms=rows,
        drills=tuple(_drills(repository, remembered)),
        drvm_version=__version__,
        host=wiring.writer,
        runs=tuple(_run_row(run, jobs) for run in _known_runs(runs, fleet, jobs)),
        jobs=tuple(_job_rows(jobs, due, runs, listing.points)),
        checks=tuple(_checks(repository.checks.history(remembered))),
        storage=storage_of(wiring, listing.points, rows),
        problems=tuple(printable(problem, 300) for problem in listing.problems),
        unreachable=tuple(unreachable),
    )
    return with_pictures(repository, report) if pictures else report


def latest_runs(wiring: Wiring) -> tuple[Run, ...]:
    """As the daemon and ``drvm run`` of this host left them on record; none where there is none."""
    path = Path(wiring.settings.state_dir) / RUNS_FILE
    if not path.exists():
        return ()
    with RunLog(path, wiring.clock) as log:
        return log.latest()


def with_pictures(repository: Repository, report: ReportInput) -> ReportInput:
    """With those that a page of this report shows, in its order and as far as there is room."""
    listed = {info.name.split("/")[-1]: info for info in repository.drills.listed()}
    whole: dict[str, DrillResult] = {}
    left_bytes = _PICTURES_BYTES
    for drill_id in shown_drill_ids(report):
        drill = _drill(repository, listed[drill_id]) if drill_id in listed else None
        if drill is not None and drill.screenshot_png is not None and left_bytes > 0:
            whole[drill_id] = drill
            left_bytes -= len(drill.screenshot_png)
    drills = tuple(whole.get(drill.id, drill) for drill in report.drills)
    return msgspec.structs.replace(report, drills=drills)


def drill_of(wiring: Wiring, drill_id: str) -> DrillResult | None:
    """One drill with its picture; ``None`` where there is none that can be read."""
    repository = wiring.repository()
    named = (info for info in repository.drills.listed() if info.name.split("/")[-1] == drill_id)
    return next((drill for info in named if (drill := _drill(repository, info))), None)


def _row(
    repository: Repository, vm: FleetVm, points: Sequence[Point], due: DueTimes, *, gone: bool
) -> VmRow:
    last = vm.last.manifest if vm.last is not None else None
    machine = last is None or vm.host is not None or last.engine != ImageFilesEngine.name
    gone = gone and machine and vm.host is None
    return VmRow(
        vm=vm.name,
        vm_uuid=vm.uuid,
        host=vm.host or ("image files" if not machine else "gone" if gone else "not seen"),
        policy=vm.policy,
        last_point=last.id if last is not None else None,
        last_point_created=parse_rfc3339(last.created) if last is not None else None,
        consistency=last.consistency if last is not None else None,
        rpo_state=vm.rpo.state.value,
        rpo_age_seconds=vm.rpo.age_seconds,
        rpo_target_seconds=vm.rpo.target_seconds,
        gone=gone,
        elsewhere=gone and last is not None and not repository.is_own(last),
        machine=machine,
        doubt=vm.doubt,
        held=vm.held,
        points=vm.points,
        first_point_created=parse_rfc3339(points[0].manifest.created) if points else None,
        points_per_day=_per_day(points, due.now.date()),
        disk_bytes=sum(disk.size_bytes for disk in last.disks) if last is not None else 0,
        stored_bytes=sum(point.manifest.stored_bytes for point in points),
        backup_due=due.of(backup_name(vm.policy)),
        drill_due=due.of(drill_name(vm.policy)),
    )


def _per_day(points: Sequence[Point], today: dt.date) -> tuple[int, ...]:
    """RFC 3339 as manifests have it begins with the day in UTC."""
    counted = Counter(point.manifest.created[:10] for point in points)
    days = (today - dt.timedelta(days=back) for back in reversed(range(DAYS_SHOWN)))
    return tuple(counted[day.isoformat()] for day in days)


def _drills(repository: Repository, remembered: Remembered) -> Iterator[DrillResult]:
    """Without pictures. What was written by a newer drvm, is damaged, or goes meanwhile is left
    out."""

    def read(info: ObjectInfo) -> DrillResult:
        whole = decode_drill(repository.drills.read(info))
        return msgspec.structs.replace(whole, screenshot_png=None)

    def one(info: ObjectInfo) -> DrillResult | None:
        try:
            return remembered.of((info,), functools.partial(read, info))
        except (ObjectMissing, ObjectDamaged, RepositoryError):
            return None

    listed = repository.drills.listed()
    remembered.keep_only(DRILLS, [info.name for info in listed])
    return (drill for drill in mapped(one, listed) if drill is not None)


def _drill(repository: Repository, info: ObjectInfo) -> DrillResult | None:
    try:
        return decode_drill(repository.drills.read(info))
    except (ObjectMissing, ObjectDamaged, RepositoryError):
        return None


def _known_runs(
    runs: Sequence[Run], fleet: Sequence[FleetVm], jobs: Sequence[PlannedJob]
) -> Iterator[Run]:
    """Of jobs that the config still has, of VMs that are still its policy's, and of all of a policy
    that are backed up or drilled together."""
    known: set[tuple[str, str]] = set()
    for job in jobs:
        policy = job.policy
        if policy is None:
            known.add((job.name, ""))
            continue
        mine = [vm for vm in fleet if vm.policy == policy.name]
        known |= {(job.name, vm.uuid) for vm in mine}
        if job.kind == "backup" and policy.group:
            known |= {(job.name, group_subject(policy, vm.host)) for vm in mine if vm.host}
        if job.kind == "drill" and policy.drill is not None and policy.drill.stages:
            known.add((job.name, policy.name))
    return (run for run in runs if (run.job, run.vm_uuid) in known)


def _job_rows(
    jobs: Sequence[PlannedJob],
    due: DueTimes,
    runs: Sequence[Run],
    points: Sequence[Point],
) -> Iterator[JobRow]:
    """The repository's that have a schedule. What was never done is due once anything was for
    longer than that; what failed last is told by that."""
    oldest = min((run.started for run in runs), default=None)
    for job in jobs:
        if job.policy is not None or job.timing is None:
            continue
        mine = [run for run in runs if run.job == job.name]
        done = [run.started for run in mine if run.state in _GOOD]
        good = max((began for began in done if began <= due.now + CLOCK_TOLERANCE), default=None)
        moment = due.of(job.name)
        unknown = not mine and (oldest is None or moment is None or oldest >= moment)
        stopped = any(run.state == "stopped" and run.started >= (moment or due.now) for run in mine)
        if unknown or stopped or any(run.state in ("failed", "lost") for run in mine):
            moment = None
        behind = None
        if job.copy is not None and good is not None:
            behind = sum(
                job.copy.covers(point.manifest.vm) and point.manifest.finished > rfc3339(good)
                for point in points
            )
        yield JobRow(job=job.name, kind=job.kind, due=moment, last_good=good, behind=behind)


def _run_row(run: Run, jobs: Sequence[PlannedJob]) -> RunRow:
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
        retry_at=_retry_at(run, jobs),
    )


def _retry_at(run: Run, jobs: Sequence[PlannedJob]) -> dt.datetime | None:
    """When what failed is tried again by its schedule; by hand nobody knows."""
    if run.state not in ("failed", "lost") or run.due is None or run.ended is None or run.result:
        return None
    retry = next((job.retry for job in jobs if job.name == run.job), NO_RETRY)
    wait_s = retry.wait_s(run.attempt)
    return None if wait_s is None else run.ended + dt.timedelta(seconds=wait_s)


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
