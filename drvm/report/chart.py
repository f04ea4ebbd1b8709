"""Small drawings as numbers: the template turns them into SVG, so that nothing needs a script."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.report.forecast import Forecast
from drvm.report.input import StorageSample
from drvm.report.model import PHASES, DrillResult

WIDTH, HEIGHT = 160.0, 34.0
_MARGIN = 5.0
MAX_POINTS = 16

MARK_WIDTH = 12

STRIP_HEIGHT = 16
_PITCH, _BAR = 4, 3

STORAGE_WIDTH, STORAGE_HEIGHT = 600.0, 150.0


@dataclass(frozen=True, slots=True)
class History:
    """The RTO of a VM's drills, the oldest left. ``line`` is an SVG list of points; ``good`` and
    ``slow`` are paths of dots: drills that got through, and passed or not; ``none`` is one of
    crosses: those that never did. ``y`` grows downwards. ``highest_seconds``: what was measured,
    ``None`` where no drill got through."""

    count: int
    line: str
    good: str
    slow: str
    none: str
    target_y: float | None
    highest_seconds: float | None
    target_seconds: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase: where it begins and how wide it is, in percent of the whole."""

    name: str
    seconds: float
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class Strip:
    """Points of the last days, a bar a day, today right: ``kept`` and ``none`` are SVG paths to be
    drawn as wide as a bar, of the days with and without one."""

    kept: str
    none: str
    width: int
    days: int
    days_with: int
    points: int


@dataclass(frozen=True, slots=True)
class Marks:
    """Drills, the latest right: SVG paths of those that passed, points to be drawn as large as
    dots, and of those that failed, crosses."""

    good: str
    bad: str
    width: int


@dataclass(frozen=True, slots=True)
class StorageChart:
    """``line`` and ``area``: what was measured; ``cone`` and ``ahead``: the forecast, or empty."""

    line: str
    area: str
    ahead: str
    cone: str
    highest_bytes: int
    begins: dt.datetime
    ends: dt.datetime


def rto_history(drills: Sequence[DrillResult]) -> History | None:
    """``drills`` of one VM, the latest first; ``None`` where there are fewer than two."""
    shown = list(reversed(drills[:MAX_POINTS]))
    if len(shown) < 2:
        return None
    target = shown[-1].rto_target_seconds
    measured = [drill.rto_seconds for drill in shown if drill.rto_seconds is not None]
    highest = max([*measured, target or 0.0, 1e-9])
    step = (WIDTH - 2 * _MARGIN) / (len(shown) - 1)
    line: list[str] = []
    good = slow = none = ""
    for index, drill in enumerate(shown):
        x = round(_MARGIN + index * step, 1)
        if drill.rto_seconds is None:
            none += f"M{x - 3:g} {_MARGIN - 3:g}l6 6m0-6l-6 6"
            continue
        y = _height(drill.rto_seconds, highest)
        line.append(f"{x:g},{y:g}")
        if drill.passed:
            good += f"M{x:g} {y:g}h0"
        else:
            slow += f"M{x:g} {y:g}h0"
    target_y = _height(target, highest) if target is not None else None
    return History(
        len(shown),
        " ".join(line),
        good,
        slow,
        none,
        target_y,
        max(measured, default=None),
        target,
    )


def phase_bars(drill: DrillResult) -> tuple[Bar, ...]:
    """One after the other, known phases first."""
    names = [name for name in PHASES if name in drill.phases]
    names += [name for name in drill.phases if name not in PHASES]
    total = sum(drill.phases.values()) or 1.0
    bars = []
    start = 0.0
    for name in names:
        width = 100.0 * drill.phases[name] / total
        bars.append(Bar(name, drill.phases[name], round(start, 1), round(max(width, 0.6), 1)))
        start += width
    return tuple(bars)


def points_strip(per_day: Sequence[int]) -> Strip | None:
    """``None`` where nothing is known. A day with many points is a little higher."""
    if not per_day:
        return None
    kept: list[str] = []
    none: list[str] = []
    for day, count in enumerate(per_day):
        high = 2 if count == 0 else min(STRIP_HEIGHT, 7 + round(2 * math.log2(count)))
        (none if count == 0 else kept).append(
            f"M{day * _PITCH + _BAR / 2:g} {STRIP_HEIGHT}v-{high}"
        )
    return Strip(
        "".join(kept),
        "".join(none),
        len(per_day) * _PITCH - (_PITCH - _BAR),
        len(per_day),
        sum(count > 0 for count in per_day),
        sum(per_day),
    )


def drill_marks(drills: Sequence[DrillResult]) -> Marks:
    """``drills`` of one VM, the oldest first."""
    good = bad = ""
    for number, drill in enumerate(drills):
        x = number * MARK_WIDTH
        if drill.passed:
            good += f"M{x + 6} 6h0"
        else:
            bad += f"M{x + 2} 2l8 8m0-8l-8 8"
    return Marks(good, bad, len(drills) * MARK_WIDTH)


def storage_chart(
    samples: Sequence[StorageSample], expected: Forecast | None
) -> StorageChart | None:
    """``samples``: the oldest first; ``None`` where there are none of two moments."""
    if len(samples) < 2 or samples[-1].taken <= samples[0].taken:
        return None
    begins, now = samples[0].taken, samples[-1].taken
    ends = expected.until if expected is not None else now
    tops = [sample.stored_bytes for sample in samples]
    if expected is not None:
        tops.append(expected.high_bytes)
    highest = max(*tops, 1)

    def at(moment: dt.datetime, count: int) -> str:
        x = STORAGE_WIDTH * ((moment - begins) / (ends - begins))
        return f"{x:.1f},{STORAGE_HEIGHT * (1 - 0.96 * count / highest):.1f}"

    line = " ".join(at(sample.taken, sample.stored_bytes) for sample in samples)
    area = f"{at(begins, 0)} {line} {at(now, 0)}"
    ahead = cone = ""
    if expected is not None:
        today = at(now, samples[-1].stored_bytes)
        ahead = f"{today} {at(ends, expected.expected_bytes)}"
        cone = f"{today} {at(ends, expected.high_bytes)} {at(ends, expected.low_bytes)}"
    return StorageChart(line, area, ahead, cone, highest, begins, ends)


def _height(seconds: float, highest: float) -> float:
    return round(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * seconds / highest, 1)
