"""Which drills a page shows, in which order, and how much of each.

The page and the dashboard share it.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from drvm.report.chart import Bar, phase_bars
from drvm.report.input import ReportInput
from drvm.report.model import DrillResult

MAX_SHOWN_DRILLS = 300
FAILED_SHOWN = 3
"""Failed drills of a VM before its latest one."""
FAILED_FOR = dt.timedelta(days=30)
MAX_OPEN = 6
"""Drills whose details are unfolded from the start."""

MAX_NOT_PROVEN = 12

MAX_PICTURE_BYTES = 1024 * 1024
MAX_PICTURES_BYTES = 12 * 1024 * 1024
"""Of all pictures of a page; those of failed drills come first."""

_PNG = b"\x89PNG\r\n\x1a\n"


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


def shown_drill_ids(report: ReportInput) -> tuple[str, ...]:
    """The drills whose pictures a page would show, the most important first."""
    return tuple(drill.id for drill in shown_drills(report))


def shown_drills(report: ReportInput) -> list[DrillResult]:
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
    first = latest_ids(report)
    shown = [
        drill
        for drill in report.latest_first()
        if id(drill) in wanted or drill.group in groups or drill.vm_uuid not in known
    ]
    shown.sort(key=lambda drill: (drill.id not in first, drill.passed))  # and so the latest first
    return shown[:MAX_SHOWN_DRILLS]


def latest_ids(report: ReportInput) -> frozenset[str]:
    """The latest drill of each VM."""
    latest: dict[str, str] = {}
    for drill in report.latest_first():
        latest.setdefault(drill.vm_uuid, drill.id)
    return frozenset(latest.values())


def groups_of(
    shown: Sequence[DrillResult], anchors: Mapping[int, str], latest: frozenset[str]
) -> tuple[DrillGroup, ...]:
    """In the order of the first that is shown of each."""
    together: dict[str, list[DrillResult]] = {}
    for drill in shown:
        together.setdefault(drill.group or f"alone {drill.id}", []).append(drill)
    room = Room()
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
                passed=all(one.passed and not one.group_absent for one in drills),
                started=min(drill.started for drill in drills),
                rto_seconds=drills[0].group_rto_seconds,
                drills=tuple(views),
            )
        )
    return tuple(sorted(found, key=lambda group: group.earlier))


def not_proven(latest: Sequence[DrillResult]) -> tuple[tuple[str, int], ...]:
    """What the latest drills of the VMs did not prove, and of how many; what holds for most comes
    first."""
    counted = Counter(line for drill in latest for line in dict.fromkeys(drill.not_proven))
    return tuple(counted.most_common(MAX_NOT_PROVEN))


class Room:
    """For pictures: a page that holds all of two hundred machines can't be mailed."""

    def __init__(self) -> None:
        self._left = MAX_PICTURES_BYTES

    def takes(self, picture: bytes) -> bool:
        fits = len(picture) <= min(self._left, MAX_PICTURE_BYTES)
        self._left -= len(picture) if fits else 0
        return fits


def drill_view(
    drill: DrillResult, anchor: str, room: Room | None = None, *, is_open: bool = True
) -> DrillView:
    """For ``drill_card`` of ``macros.html.j2``."""
    room = room or Room()
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
