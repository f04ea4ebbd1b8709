"""What people are shown of a report, in its order: worked out here, so that templates only print.

The page and the dashboard share it.
"""

from __future__ import annotations

import base64
import datetime as dt
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from drvm.report.attention import Concern, Severity, attention
from drvm.report.chart import (
    Bar,
    History,
    StorageChart,
    Strip,
    phase_bars,
    points_strip,
    rto_history,
    storage_chart,
)
from drvm.report.forecast import Forecast, forecast
from drvm.report.input import JobRow, ReportInput, RunRow, VmRow
from drvm.report.model import DrillResult

MAX_SHOWN_DRILLS = 300
FAILED_SHOWN = 3
"""Failed drills of a VM before its latest one."""
FAILED_FOR = dt.timedelta(days=30)
MAX_OPEN = 6
"""Drills whose details are unfolded from the start."""

ROWS_UNFOLDED = 30
ALIKE_UNFOLDED = 3
"""More concerns of one sort than these become one line with a list below it."""

MAX_PICTURE_BYTES = 1024 * 1024
MAX_PICTURES_BYTES = 12 * 1024 * 1024
"""Of all pictures of a page; those of failed drills come first."""

_PNG = b"\x89PNG\r\n\x1a\n"

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
    history: History | None
    strip: Strip | None


@dataclass(frozen=True, slots=True)
class DrillView:
    """A drill with what the template must not work out itself. ``picture_bytes``: of one that
    there is no room for."""

    drill: DrillResult
    anchor: str
    bars: tuple[Bar, ...]
    screenshot: Markup | None
    picture_bytes: int
    checks_passed: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class DrillGroup:
    """Machines that were drilled together, in their order; or one alone (``together`` false).
    ``earlier``: none of them is the latest drill of its VM."""

    together: bool
    earlier: bool
    passed: bool
    started: dt.datetime
    rto_seconds: float | None
    drills: tuple[DrillView, ...]


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
    drill passed."""

    vms: int
    rpo_kept: int
    rpo_asked: int
    proven: int
    drills: int
    drills_passed: int
    median_rto_seconds: float | None
    slowest_rto_seconds: float | None
    critical: int
    warnings: int


@dataclass(frozen=True, slots=True)
class Overview:
    """``vms``: what needs a look first; the first ``unfolded`` of them do, or are few."""

    report: ReportInput
    summary: Summary
    attention: tuple[Alike, ...]
    vms: tuple[VmView, ...]
    unfolded: int
    gone: tuple[VmView, ...]
    unprotected: tuple[VmView, ...]
    images: tuple[VmView, ...]
    drills: tuple[DrillGroup, ...]
    drills_left_out: int
    storage: StorageChart | None
    forecast: Forecast | None
    jobs: tuple[JobView, ...]


def overview(report: ReportInput) -> Overview:
    concerns = attention(report)
    worst: dict[str, Severity] = {}
    for concern in concerns:  # critical ones come first
        worst.setdefault(concern.vm_uuid, concern.severity)
    shown = _shown_drills(report)
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
        vms=tuple(present),
        unfolded=len(present) if len(present) <= ROWS_UNFOLDED else wanting,
        gone=tuple(view for view in vms if view.row.gone),
        unprotected=tuple(v for v in present if v.row.policy is None and not v.row.doubt),
        images=tuple(view for view in vms if not view.row.machine),
        drills=_groups(shown, anchors, _latest_ids(report)),
        drills_left_out=len(report.drills) - len(shown),
        storage=storage_chart(report.storage, expected),
        forecast=expected,
        jobs=_jobs(report),
    )


def shown_drill_ids(report: ReportInput) -> tuple[str, ...]:
    """The drills whose pictures a page would show, the most important first."""
    return tuple(drill.id for drill in _shown_drills(report))


def _urgency(severity: Severity | None) -> int:
    return ("critical", "warning", None).index(severity)


def _vm_view(
    report: ReportInput, row: VmRow, worst: Mapping[str, Severity], anchors: Mapping[int, str]
) -> VmView:
    drills = report.drills_of(row.vm_uuid)
    last = drills[0] if drills else None
    return VmView(
        row=row,
        severity=worst.get(row.vm_uuid),
        last_drill=last,
        anchor=anchors.get(id(last)) if last is not None else None,
        drills=tuple(reversed(drills[:12])),
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
    severities = [concern.severity for concern in concerns]
    return Summary(
        vms=len(vms),
        rpo_kept=sum(view.row.rpo_state == "met" for view in vms),
        rpo_asked=sum(view.row.rpo_target_seconds is not None for view in vms),
        proven=sum(drill.passed for drill in latest),
        drills=len(report.drills),
        drills_passed=sum(drill.passed for drill in report.drills),
        median_rto_seconds=statistics.median(times) if times else None,
        slowest_rto_seconds=max(times, default=None),
        critical=severities.count("critical"),
        warnings=severities.count("warning"),
    )


def _shown_drills(report: ReportInput) -> list[DrillResult]:
    """The latest of each VM, with all that were drilled together with it, and a few failed ones
    of late, which come last. In each what failed comes first, then the latest."""
    latest = [drills[0] for row in report.vms if (drills := report.drills_of(row.vm_uuid))]
    groups = {drill.group for drill in latest if drill.group}
    wanted = {id(drill) for drill in latest}
    wanted.update(
        id(drill)
        for row in report.vms
        for drill in [d for d in report.drills_of(row.vm_uuid) if not d.passed][:FAILED_SHOWN]
        if report.generated - drill.started < FAILED_FOR
    )
    known = {row.vm_uuid for row in report.vms}
    first = _latest_ids(report)
    shown = [
        drill
        for drill in report.latest_first()
        if id(drill) in wanted or drill.group in groups or drill.vm_uuid not in known
    ]
    shown.sort(key=lambda drill: (drill.id not in first, drill.passed))  # and so the latest first
    return shown[:MAX_SHOWN_DRILLS]


def _latest_ids(report: ReportInput) -> frozenset[str]:
    """The latest drill of each VM."""
    latest: dict[str, str] = {}
    for drill in report.latest_first():
        latest.setdefault(drill.vm_uuid, drill.id)
    return frozenset(latest.values())


def _groups(
    shown: Sequence[DrillResult], anchors: Mapping[int, str], latest: frozenset[str]
) -> tuple[DrillGroup, ...]:
    """In the order of the first that is shown of each."""
    together: dict[str, list[DrillResult]] = {}
    for drill in shown:
        together.setdefault(drill.group or f"alone {drill.id}", []).append(drill)
    room = _Room()
    left_to_open = MAX_OPEN
    found = []
    for drills in together.values():
        drills.sort(key=lambda drill: (drill.stage, drill.started, drill.vm))
        earlier = not any(drill.id in latest for drill in drills)
        views = []
        for drill in drills:
            wants = left_to_open > 0 and not earlier and (not drill.passed or len(shown) == 1)
            views.append(drill_view(drill, anchors[id(drill)], room, is_open=wants))
            left_to_open -= wants
        found.append(
            DrillGroup(
                together=bool(drills[0].group),
                earlier=earlier,
                passed=all(drill.passed for drill in drills),
                started=min(drill.started for drill in drills),
                rto_seconds=drills[0].group_rto_seconds,
                drills=tuple(views),
            )
        )
    return tuple(sorted(found, key=lambda group: group.earlier))


class _Room:
    """For pictures: a page that holds all of two hundred machines can't be mailed."""

    def __init__(self) -> None:
        self._left = MAX_PICTURES_BYTES

    def takes(self, picture: bytes) -> bool:
        fits = len(picture) <= min(self._left, MAX_PICTURE_BYTES)
        self._left -= len(picture) if fits else 0
        return fits


def drill_view(
    drill: DrillResult, anchor: str, room: _Room | None = None, *, is_open: bool = True
) -> DrillView:
    """For ``drill_card`` of ``macros.html.j2``."""
    room = room or _Room()
    screenshot, left_out = None, 0
    picture = drill.screenshot_png
    if picture and picture.startswith(_PNG):
        if room.takes(picture):
            encoded = base64.b64encode(picture).decode("ascii")
            screenshot = Markup(f"data:image/png;base64,{encoded}")  # noqa: S704 - base64 only
        else:
            left_out = len(picture)
    passed = sum(check.passed for check in drill.checks)
    return DrillView(drill, anchor, phase_bars(drill), screenshot, left_out, passed, is_open)


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
