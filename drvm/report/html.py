"""The report as one page that can be mailed, printed and kept: no script, nothing from outside.

Jinja2 escapes everything; control characters are written out before. The page's own policy
(CSP) allows its one style sheet by digest, pictures inside the page, and nothing else.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
import statistics
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from drvm.core.text import printable
from drvm.core.units import format_bytes, format_seconds
from drvm.report.chart import Bar, History, phase_bars, rto_history
from drvm.report.input import ReportInput, VmRow
from drvm.report.model import DrillResult

MAX_SHOWN_DRILLS = 200
MAX_SHOWN_CHARS = 2000

_CONSISTENCY = {
    "filesystem": "file-system consistent",
    "crash": "crash-consistent",
    "offline": "taken while off",
}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class DrillView:
    """A drill with what the template must not work out itself."""

    drill: DrillResult
    anchor: str
    bars: tuple[Bar, ...]
    screenshot: Markup | None
    checks_passed: int


@dataclass(frozen=True, slots=True)
class VmView:
    row: VmRow
    last_drill: DrillResult | None
    anchor: str | None
    history: History | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures on top. A VM counts as proven if its latest drill passed."""

    vms: int
    rpo_kept: int
    rpo_asked: int
    proven: int
    drills: int
    drills_passed: int
    median_rto_seconds: float | None
    slowest_rto_seconds: float | None


def html_report(report: ReportInput) -> str:
    latest = report.latest_first()
    anchors = {id(drill): f"drill-{number}" for number, drill in enumerate(latest, 1)}
    vms = [_vm_view(report, row, anchors) for row in report.vms]
    vms.sort(key=lambda view: (_urgency(view), view.row.vm))
    style, style_digest = _style()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=_summary(report, vms),
            vms=vms,
            drills=[drill_view(drill, anchors[id(drill)]) for drill in latest[:MAX_SHOWN_DRILLS]],
            left_out=max(0, len(latest) - MAX_SHOWN_DRILLS),
            style=Markup(style),  # noqa: S704 - our own file
            style_digest=style_digest,
        )
    )


def _vm_view(report: ReportInput, row: VmRow, anchors: dict[int, str]) -> VmView:
    drills = report.drills_of(row.vm_uuid)
    last = drills[0] if drills else None
    return VmView(row, last, anchors[id(last)] if last else None, rto_history(drills))


def _urgency(view: VmView) -> int:
    """What needs a look comes first."""
    if view.last_drill is not None and not view.last_drill.passed:
        return 0
    return 1 if view.row.rpo_state in ("missed", "never", "unknown") else 2


def _summary(report: ReportInput, vms: list[VmView]) -> Summary:
    times = [drill.rto_seconds for drill in report.drills if drill.rto_seconds is not None]
    states = [view.row.rpo_state for view in vms]
    return Summary(
        vms=len(vms),
        rpo_kept=states.count("met"),
        rpo_asked=sum(view.row.rpo_target_seconds is not None for view in vms),
        proven=sum(view.last_drill is not None and view.last_drill.passed for view in vms),
        drills=len(report.drills),
        drills_passed=sum(drill.passed for drill in report.drills),
        median_rto_seconds=statistics.median(times) if times else None,
        slowest_rto_seconds=max(times, default=None),
    )


def drill_view(drill: DrillResult, anchor: str) -> DrillView:
    """For ``drill_card`` of ``macros.html.j2``."""
    screenshot = None
    if drill.screenshot_png and drill.screenshot_png.startswith(_PNG):
        encoded = base64.b64encode(drill.screenshot_png).decode("ascii")
        screenshot = Markup(f"data:image/png;base64,{encoded}")  # noqa: S704 - base64 only
    passed = sum(check.passed for check in drill.checks)
    return DrillView(drill, anchor, phase_bars(drill), screenshot, passed)


@cache
def style_sheet() -> str:
    return resources.files(__package__).joinpath("report.css").read_text("utf-8")


@cache
def _style() -> tuple[str, str]:
    """The style sheet, and its digest as the page's policy wants it."""
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return style, digest


@cache
def environment(*more: jinja2.BaseLoader) -> jinja2.Environment:
    """Templates that escape everything, with the report's filters and ``macros.html.j2``; ``more``:
    where else templates are found."""
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*more, jinja2.PackageLoader("drvm.report", ".")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    found.filters |= {
        "seconds": lambda value: "–" if value is None else format_seconds(value),
        "round_seconds": _round_seconds,
        "consistency": lambda value: _CONSISTENCY.get(value, value),
        "bytes": format_bytes,
        "moment": _moment,
        "iso": lambda value: value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return found


def _shown(value: object) -> object:
    """Every text on its way into the page; ``Markup`` is only what this module made itself."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, MAX_SHOWN_CHARS, lines=True)
    return value


def _round_seconds(seconds: float) -> str:
    """Targets are round: ``15 min``, not ``15 min 00 s``."""
    return re.sub(r" 00 \w+$|\.0(?= s$)", "", format_seconds(seconds))


def _moment(value: dt.datetime | None) -> str:
    if value is None:
        return "–"
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
