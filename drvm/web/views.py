"""What templates show, worked out: no template decides anything."""

from __future__ import annotations

import datetime as dt
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.core.units import format_bytes, format_coarse_seconds
from drvm.report.input import RunRow
from drvm.runs.model import Run
from drvm.web.source import PointRow

MAX_GROWTH_BARS = 48
FEW_BARS = 14
GROWTH_WIDTH, GROWTH_HEIGHT = 480.0, 64.0
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


@dataclass(frozen=True, slots=True)
class RunView:
    """``mark``: class and words of its state. ``amount``: how far it is. ``vm_page``: the UUID of
    the one machine that it is about, else empty."""

    run: Run | RunRow
    mark: tuple[str, str]
    took_seconds: float
    amount: str = ""
    vm_page: str = ""


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
    "done": ("good", "done"),
    "warned": ("warn", "done, with warnings"),
    "failed": ("bad", "failed"),
    "stopped": ("none", "stopped"),
    "lost": ("bad", "lost"),
}
STATES = tuple(state for state in _MARKS if state != "running")


def run_view(run: Run | RunRow, now: dt.datetime) -> RunView:
    amount = ""
    if isinstance(run, Run) and run.state == "running" and run.done_bytes:
        amount = format_bytes(run.done_bytes)
        if run.total_bytes:
            amount += f" of {format_bytes(run.total_bytes)}"
    took = ((run.ended or now) - run.started).total_seconds()
    page = run.vm_uuid if _UUID.fullmatch(run.vm_uuid) else ""  # else several together
    return RunView(run, _MARKS.get(run.state, ("none", run.state)), max(took, 0.0), amount, page)


def point_view(
    point: PointRow, command: str, now: dt.datetime, *, is_there: bool, is_machine: bool = True
) -> PointView:
    """``is_there``: the VM is on a host still, so that it would be replaced. Image files that were
    stored by hand may have no definition, and come back as files."""
    shown = shlex.quote(point.id)
    name = point.vm if _PLAIN_NAME.fullmatch(point.vm) else "restored"
    lines = [
        (
            "Restore it: take the VM's place, once that is shut down" if is_there else "Restore it",
            f"restore {shown} {'--replace' if is_there else '--start'}",
        ),
        ("As a second machine beside it", f"clone {shown} {name}-restored"),
        ("Boot it at once, over the repository", f"boot {shown} --name {name}-now"),
        ("List its file systems, to get single files", f"files ls {shown}"),
    ]
    if not is_machine:
        lines = [("Restore its disks into a folder", f"restore {shown} --output {name}"), lines[-1]]
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
    step = GROWTH_WIDTH / max(len(shown), FEW_BARS)
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
        return f"in {format_coarse_seconds(-seconds)}"
    return "just now" if seconds < 60 else f"{format_coarse_seconds(seconds)} ago"
