"""What people are shown of a report, in its order: worked out here, so that templates only print.

The page and the dashboard share it.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drvm.report.attention import Concern, Severity, attention
from drvm.report.chart import (
    History,
    Marks,
    StorageChart,
    Strip,
    drill_marks,
    points_strip,
    rto_history,
    storage_chart,
)
from drvm.report.drill_views import DrillGroup, groups_of, latest_ids, not_proven, shown_drills
from drvm.report.forecast import Forecast, forecast
from drvm.report.input import JobRow, ReportInput, RunRow, VmRow
from drvm.report.model import DrillResult

ROWS_UNFOLDED = 30
MAX_MARKS = 12
"""Of the last drills of a VM."""
ALIKE_UNFOLDED = 3
"""More concerns of one sort than these become one line with a list below it."""

_ALIKE = {
    "rpo": "have no good point that is young enough (RPO)",
    "drill": "did not pass their last drill",
    "rto": "recover more slowly than they may (RTO)",
    "drill-due": "were not drilled as often as meant",
    "unprotected": "are covered by no policy",
    "gone": "are on none of the hosts any more",
    "failure": "could not be worked on by their jobs",
}


@dataclass(frozen=True, slots=True)
class Alike:
    """Concerns of one sort: ``words`` where there are so many that they are told as one, else
    empty."""

    severity: Severity
    words: str
    concerns: tuple[Concern, ...]


@dataclass(frozen=True, slots=True)
class VmView:
    """``anchor``: of its latest drill. ``severity``: of the worst that is wrong with it."""

    row: VmRow
    severity: Severity | None
    last_drill: DrillResult | None
    anchor: str | None
    drills: tuple[DrillResult, ...]
    marks: Marks
    history: History | None
    strip: Strip | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job and its last runs, but those that were stopped; ``done``: the ``warned`` ones, too."""

    job: str
    last: dt.datetime | None
    done: int
    failed: tuple[RunRow, ...]
    due: JobRow | None
    warned: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures on top; VMs that are gone don't count. A VM counts as proven if its latest
    drill passed; ``oldest_proof_seconds``: how long ago the oldest of these drills began."""

    vms: int
    rpo_kept: int
    rpo_asked: int
    proven: int
    drilled: int
    drills: int
    drills_passed: int
    oldest_proof_seconds: float | None
    median_rto_seconds: float | None
    slowest_rto_seconds: float | None
    critical: int
    warnings: int


@dataclass(frozen=True, slots=True)
class Overview:
    """``anchors``: of the latest drills, by their VMs. ``vms``: what needs a look first; the first
    ``unfolded`` of them do, or are few."""

    report: ReportInput
    summary: Summary
    attention: tuple[Alike, ...]
    anchors: Mapping[str, str]
    vms: tuple[VmView, ...]
    unfolded: int
    gone: tuple[VmView, ...]
    elsewhere: tuple[VmView, ...]
    unprotected: tuple[VmView, ...]
    images: tuple[VmView, ...]
    drills: tuple[DrillGroup, ...]
    drills_left_out: int
    not_proven: tuple[tuple[str, int], ...]
    storage: StorageChart | None
    forecast: Forecast | None
    jobs: tuple[JobView, ...]


def overview(report: ReportInput) -> Overview:
    concerns = attention(report)
    worst: dict[str, Severity] = {}
    for concern in concerns:  # critical ones come first
        worst.setdefault(concern.vm_uuid, concern.severity)
    shown = shown_drills(report)
    anchors = {id(drill): f"drill-{number}" for number, drill in enumerate(shown, 1)}
    vms = [_vm_view(report, row, worst, anchors) for row in report.vms]
    vms.sort(key=lambda view: (_urgency(view.severity), view.row.vm, view.row.vm_uuid))
    present = [view for view in vms if view.row.machine and not view.row.gone]
    wanting = sum(view.severity is not None for view in present)
    expected = forecast(report.storage)
    return Overview(
        report=report,
        summary=_summary(report, present, concerns),
        attention=_alike(concerns),
        anchors={view.row.vm_uuid: view.anchor for view in vms if view.anchor is not None},
        vms=tuple(present),
        unfolded=len(present) if len(present) <= ROWS_UNFOLDED else wanting,
        gone=tuple(view for view in vms if view.row.gone and not view.row.elsewhere),
        elsewhere=tuple(view for view in vms if view.row.gone and view.row.elsewhere),
        unprotected=tuple(v for v in present if v.row.policy is None and not v.row.doubt),
        images=tuple(view for view in vms if not view.row.machine),
        drills=groups_of(shown, anchors, latest_ids(report)),
        drills_left_out=len(report.drills) - len(shown),
        not_proven=not_proven([v.last_drill for v in present if v.last_drill is not None]),
        storage=storage_chart(report.storage, expected),
        forecast=expected,
        jobs=_jobs(report),
    )


def _urgency(severity: Severity | None) -> int:
    return ("critical", "warning", None).index(severity)


def _vm_view(
    report: ReportInput, row: VmRow, worst: Mapping[str, Severity], anchors: Mapping[int, str]
) -> VmView:
    drills = report.drills_of(row.vm_uuid)
    last = drills[0] if drills else None
    shown = tuple(reversed(drills[:MAX_MARKS]))
    return VmView(
        row=row,
        severity=worst.get(row.vm_uuid),
        last_drill=last,
        anchor=anchors.get(id(last)) if last is not None else None,
        drills=shown,
        marks=drill_marks(shown),
        history=rto_history(drills),
        strip=points_strip(row.points_per_day) if row.points else None,
    )


def _alike(concerns: Sequence[Concern]) -> tuple[Alike, ...]:
    """In their order; many of one sort stand where the first of them does."""
    sorts: dict[tuple[str, Severity], list[Concern]] = {}
    for concern in concerns:
        sort = concern.key.partition(" ")[0] if concern.vm_uuid else concern.key
        sorts.setdefault((sort, concern.severity), []).append(concern)
    found = []
    for (sort, severity), alike in sorts.items():
        if len(alike) > ALIKE_UNFOLDED and sort in _ALIKE:
            found.append(Alike(severity, f"{len(alike)} VMs {_ALIKE[sort]}", tuple(alike)))
        else:
            found += [Alike(severity, "", (concern,)) for concern in alike]
    return tuple(found)


def _summary(report: ReportInput, vms: Sequence[VmView], concerns: Sequence[Concern]) -> Summary:
    latest = [view.last_drill for view in vms if view.last_drill is not None]
    times = [drill.rto_seconds for drill in latest if drill.rto_seconds is not None]
    proofs = [drill.started for drill in latest if drill.passed]
    severities = [concern.severity for concern in concerns]
    return Summary(
        vms=len(vms),
        rpo_kept=sum(view.row.rpo_state == "met" for view in vms),
        rpo_asked=sum(view.row.rpo_target_seconds is not None for view in vms),
        proven=sum(drill.passed for drill in latest),
        drilled=len(latest),
        drills=len(report.drills),
        drills_passed=sum(drill.passed for drill in report.drills),
        oldest_proof_seconds=(
            max(0.0, (report.generated - min(proofs)).total_seconds()) if proofs else None
        ),
        median_rto_seconds=statistics.median(times) if times else None,
        slowest_rto_seconds=max(times, default=None),
        critical=severities.count("critical"),
        warnings=severities.count("warning"),
    )


def _jobs(report: ReportInput) -> tuple[JobView, ...]:
    """What failed first."""
    runs: dict[str, list[RunRow]] = {job.job: [] for job in report.jobs}
    for run in report.runs:
        runs.setdefault(run.job, []).append(run)
    due = {job.job: job for job in report.jobs}
    views = [_job(job, mine, due.get(job)) for job, mine in runs.items()]
    return tuple(sorted(views, key=lambda view: (not view.failed, view.job)))


def _job(job: str, runs: Iterable[RunRow], due: JobRow | None) -> JobView:
    ended = [run for run in runs if run.ended is not None]
    failed = tuple(run for run in ended if run.state in ("failed", "lost"))
    done = sum(run.state in ("done", "warned") for run in ended)
    last = max((run.started for run in ended), default=None)
    return JobView(job, last, done, failed, due, sum(run.state == "warned" for run in ended))
