"""What templates show, worked out: no template decides anything."""

from __future__ import annotations

import datetime as dt
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.core.units import format_bytes
from drvm.report.attention import Concern
from drvm.report.chart import History, rto_history
from drvm.report.input import ReportInput, RunRow, VmRow
from drvm.report.model import DrillResult
from drvm.runs.model import Run
from drvm.web.source import PointRow

MAX_GROWTH_BARS = 48
GROWTH_WIDTH, GROWTH_HEIGHT = 480.0, 64.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


@dataclass(frozen=True, slots=True)
class FleetView:
    """A VM in the overview. ``worst``: of its concerns, ``good`` where there are none."""

    row: VmRow
    worst: str
    last_drill: DrillResult | None
    history: History | None


@dataclass(frozen=True, slots=True)
class Tile:
    figure: str
    words: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class RunView:
    """``mark``: class and words of its state. ``amount``: how far it is."""

    run: Run | RunRow
    mark: tuple[str, str]
    took_seconds: float
    amount: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """``text`` is for a shell. ``element``: the id that it has in the page."""

    words: str
    text: str
    element: str


@dataclass(frozen=True, slots=True)
class PointView:
    point: PointRow
    age_seconds: float
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class GrowthBar:
    x: float
    y: float
    width: float
    height: float
    words: str


_MARKS = {
    "running": ("none", "running"),
    "done": ("good", "✓ done"),
    "warned": ("warn", "! done, with warnings"),
    "failed": ("bad", "✗ failed"),
    "stopped": ("none", "– stopped"),
    "lost": ("bad", "✗ lost"),
}
STATES = tuple(state for state in _MARKS if state != "running")

_RANK = {"critical": 0, "warning": 1, "good": 2}


def fleet_views(report: ReportInput, concerns: Sequence[Concern]) -> list[FleetView]:
    """What needs a look comes first."""
    worst: dict[str, str] = {}
    for concern in concerns:
        if concern.vm_uuid:
            before = worst.get(concern.vm_uuid, "good")
            worst[concern.vm_uuid] = min(before, concern.severity, key=_RANK.__getitem__)
    views = []
    for row in report.vms:
        drills = report.drills_of(row.vm_uuid)
        last = drills[0] if drills else None
        views.append(FleetView(row, worst.get(row.vm_uuid, "good"), last, rto_history(drills)))
    return sorted(views, key=lambda view: (_RANK[view.worst], view.row.gone, view.row.vm))


def tiles(report: ReportInput, views: Sequence[FleetView], running: int) -> tuple[Tile, ...]:
    here = [view for view in views if not view.row.gone]
    asked = [view for view in here if view.row.rpo_target_seconds is not None]
    kept = sum(view.row.rpo_state == "met" for view in asked)
    proven = sum(view.last_drill is not None and view.last_drill.passed for view in here)
    protected = sum(view.row.policy is not None for view in here)
    stored = report.storage[-1].stored_bytes if report.storage else None
    found = [
        Tile(_of(protected, len(here)), "VMs covered by a policy", _kind(protected, len(here))),
        Tile(_of(kept, len(asked)), "VMs within their RPO", _kind(kept, len(asked))),
        Tile(_of(proven, len(here)), "VMs proven by their last drill", _kind(proven, len(here))),
    ]
    if stored is not None:
        found.append(Tile(format_bytes(stored), "in the repository"))
    else:
        found.append(Tile(str(running), "job running" if running == 1 else "jobs running"))
    return tuple(found)


def _of(some: int, all_: int) -> str:
    return f"{some} of {all_}" if all_ else "–"


def _kind(some: int, all_: int) -> str:
    if not all_:
        return ""
    return "good" if some == all_ else "bad"


def run_view(run: Run | RunRow, now: dt.datetime) -> RunView:
    amount = ""
    if isinstance(run, Run) and run.state == "running" and run.done_bytes:
        amount = format_bytes(run.done_bytes)
        if run.total_bytes:
            amount += f" of {format_bytes(run.total_bytes)}"
    took = ((run.ended or now) - run.started).total_seconds()
    return RunView(run, _MARKS.get(run.state, ("none", run.state)), max(took, 0.0), amount)


def point_view(point: PointRow, command: str, now: dt.datetime, *, is_there: bool) -> PointView:
    """``is_there``: the VM is on a host still, so that it would be replaced."""
    shown = shlex.quote(point.id)
    name = point.vm if _PLAIN_NAME.fullmatch(point.vm) else "restored"
    lines = [
        (
            "Restore it: take the VM's place" if is_there else "Restore it",
            f"restore {shown} {'--replace' if is_there else '--start'}",
        ),
        ("As a second machine beside it", f"clone {shown} {name}-restored"),
        ("Boot it at once, over the repository", f"boot {shown} --name {name}-now"),
        ("Look for single files", f"files ls {shown} /"),
    ]
    commands = tuple(
        Command(words, f"{command} {text}", f"command-{number}-{point.id}")
        for number, (words, text) in enumerate(lines)
    )
    return PointView(point, max((now - point.created).total_seconds(), 0.0), commands)


def growth(points: Sequence[PointRow]) -> tuple[GrowthBar, ...]:
    """What each of the newest points added, the oldest left."""
    shown = list(reversed(points[:MAX_GROWTH_BARS]))
    if len(shown) < 2:
        return ()
    highest = max(point.stored_bytes for point in shown) or 1
    step = GROWTH_WIDTH / len(shown)
    bars = []
    for index, point in enumerate(shown):
        height = max(GROWTH_HEIGHT * point.stored_bytes / highest, 1.0)
        when = point.created.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        bars.append(
            GrowthBar(
                round(index * step, 2),
                round(GROWTH_HEIGHT - height, 2),
                round(step * 0.8, 2),
                round(height, 2),
                f"{when}: {format_bytes(point.stored_bytes)}",
            )
        )
    return tuple(bars)


def ago(moment: dt.datetime | None, now: dt.datetime) -> str:
    """``3 h 12 min ago``, ``5 d ago``: coarse, so that a page changes only when that says much."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return f"in {_coarse(-seconds)}"
    return "just now" if seconds < 60 else f"{_coarse(seconds)} ago"


def _coarse(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 10 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds // 86400:.0f} d"
