"""Small drawings as numbers: the template turns them into SVG, so that nothing needs a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drvm.report.model import PHASES, DrillResult

WIDTH, HEIGHT = 240.0, 56.0
_MARGIN = 6.0
MAX_POINTS = 24


@dataclass(frozen=True, slots=True)
class Dot:
    """``y`` grows downwards. ``rto_seconds`` is ``None`` where the drill never got through."""

    x: float
    y: float
    passed: bool
    rto_seconds: float | None
    drill: DrillResult


@dataclass(frozen=True, slots=True)
class History:
    """The RTO of a VM's drills, the oldest left. ``line`` is an SVG list of points."""

    dots: tuple[Dot, ...]
    line: str
    target_y: float | None
    highest_seconds: float
    target_seconds: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase: where it begins and how wide it is, in percent of the whole."""

    name: str
    seconds: float
    start: float
    width: float


def rto_history(drills: Sequence[DrillResult]) -> History | None:
    """``drills`` of one VM, the latest first; ``None`` where there are fewer than two."""
    shown = list(reversed(drills[:MAX_POINTS]))
    if len(shown) < 2:
        return None
    target = shown[-1].rto_target_seconds
    measured = [drill.rto_seconds for drill in shown if drill.rto_seconds is not None]
    highest = max([*measured, target or 0.0, 1e-9])
    step = (WIDTH - 2 * _MARGIN) / (len(shown) - 1)
    dots = tuple(
        Dot(
            x=round(_MARGIN + index * step, 1),
            y=_height(drill.rto_seconds if drill.rto_seconds is not None else highest, highest),
            passed=drill.passed,
            rto_seconds=drill.rto_seconds,
            drill=drill,
        )
        for index, drill in enumerate(shown)
    )
    line = " ".join(f"{dot.x},{dot.y}" for dot in dots if dot.rto_seconds is not None)
    target_y = _height(target, highest) if target is not None else None
    return History(dots, line, target_y, highest, target)


def phase_bars(drill: DrillResult) -> tuple[Bar, ...]:
    """One after the other, known phases first."""
    names = [name for name in PHASES if name in drill.phases]
    names += [name for name in drill.phases if name not in PHASES]
    total = sum(drill.phases.values()) or 1.0
    bars = []
    start = 0.0
    for name in names:
        width = 100.0 * drill.phases[name] / total
        bars.append(Bar(name, drill.phases[name], round(start, 2), round(max(width, 0.6), 2)))
        start += width
    return tuple(bars)


def _height(seconds: float, highest: float) -> float:
    return round(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * seconds / highest, 1)
