"""Which points stay, and why. Pure: points, rules, pins and times in, a decision per point out.

Rules are of the restic kind: ``daily=7`` keeps the newest point of each of the last 7 days *that
have a point*. Nothing goes because time passes, only because newer points came: a machine that is
backed up no more keeps what it has. Rules are independent of each other, so that one more rule
never removes anything more.

What may push others out is judged with suspicion:

- Only points of one series do: one machine, under one name, written by one host.
- A point dated after the moment at which the store took it, or after now, has a wrong clock behind
  it. It pushes nobody out, and no rule removes it. One that is not ``sound`` likewise.
- Where this host's clock and the store's are apart, nothing is removed at all.
- The last good point of each series stays: by its date, and by the store's own time, for a host
  whose clock fell back makes new points that look old.
"""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from drvm.core.units import format_seconds

CLOCK_TOLERANCE = dt.timedelta(minutes=15)
"""How far clocks may be apart before they mean something."""

SETTLED = dt.timedelta(minutes=20)
"""No point younger than this, by the store's time, is removed by rules: longer than any request
lives (S3 refuses signatures of more than 15 minutes ago), so that no late duplicate of the one that
created a point can bring it back after it was removed."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How many to keep of each kind; 0: no such rule. ``within_s``: everything not older than this
    before the newest. Days and the like are those of ``time_zone``, an IANA name. ``doubt``: why
    nobody can tell which rules are meant; then nothing is removed."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_s: float = 0.0
    time_zone: str = "UTC"
    doubt: str = ""

    @property
    def empty(self) -> bool:
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return not any(counts) and not self.within_s


NO_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A good point. ``created`` and ``finished`` are what its writer's clock said; by the store's
    time, ``first_stored`` and ``stored`` are when its first and its last generation were decided,
    for points may be written again. All aware. ``sound``: all it needs is there."""

    id: str
    vm: str
    vm_uuid: str
    host: str
    created: dt.datetime
    finished: dt.datetime
    first_stored: dt.datetime
    stored: dt.datetime
    sound: bool = True

    @property
    def series(self) -> tuple[str, str, str]:
        return (self.vm_uuid, self.vm, self.host)


@dataclass(frozen=True, slots=True)
class Now:
    """The same moment by this host's clock and by the store's."""

    host: dt.datetime
    store: dt.datetime

    @property
    def problem(self) -> str | None:
        apart = self.host - self.store
        if abs(apart) <= CLOCK_TOLERANCE:
            return None
        word = "ahead of" if apart > dt.timedelta() else "behind"
        shown = format_seconds(abs(apart).total_seconds())
        return f"this host's clock is {shown} {word} the store's"


@dataclass(frozen=True, slots=True)
class Decision:
    """``reasons`` has at least one line for people. ``doubt``: nobody can tell its rules."""

    point: Candidate
    kept: bool
    reasons: tuple[str, ...]
    doubt: bool = False


def decide(
    points: Iterable[Candidate],
    rules: Callable[[Candidate], Rules],
    pins: Mapping[str, str],
    now: Now,
    settled: dt.timedelta = SETTLED,
) -> tuple[Decision, ...]:
    """A decision for each point, by machine and date. ``rules`` are asked for once for each series,
    by its newest point that counts; ``pins`` has a note for each pinned id."""
    ordered = sorted(points, key=lambda p: (p.vm, p.vm_uuid, p.host, p.created, p.id))
    decisions: list[Decision] = []
    for _, group in itertools.groupby(ordered, lambda point: point.series):
        decisions += _decide_series(list(group), rules, pins, now, settled)
    return tuple(sorted(decisions, key=lambda d: (d.point.vm, d.point.created, d.point.id)))


def _decide_series(
    points: Sequence[Candidate],
    rules_of: Callable[[Candidate], Rules],
    pins: Mapping[str, str],
    now: Now,
    settled: dt.timedelta,
) -> list[Decision]:
    """``points`` are the oldest first. What counts for nothing says nothing about the rules."""
    doubts = [_doubt(point, now) for point in points]
    counted = [point for point, doubt in zip(points, doubts, strict=True) if doubt is None]
    rules = rules_of((counted or points)[-1])
    by_rules = _by_rules(counted, rules)
    problem, fresh = now.problem, f"stored less than {format_seconds(settled.total_seconds())} ago"
    decisions = []
    for point, doubt in zip(points, doubts, strict=True):
        reasons = list(by_rules.get(point.id, ()))
        if point.id in pins:
            reasons.insert(0, f"pinned: {pins[point.id]}" if pins[point.id] else "pinned")
        if doubt is not None:
            reasons.append(doubt)
        if rules.doubt:
            reasons.append(rules.doubt)
        elif rules.empty:
            reasons.append("no rules")
        if problem is not None:
            reasons.append(problem)
        if not reasons and now.store - point.stored < settled:
            reasons.append(fresh)
        kept, why = bool(reasons), tuple(reasons) or ("no rule keeps it",)
        decisions.append(Decision(point, kept, why, bool(rules.doubt)))
    return decisions


def _doubt(point: Candidate, now: Now) -> str | None:
    """Why a point counts for nothing, if it does."""
    latest = max(point.created, point.finished)
    ahead = latest > min(point.stored, now.host, now.store) + CLOCK_TOLERANCE
    if ahead or point.created > point.first_stored + CLOCK_TOLERANCE:
        return "dated in the future: it counts for nothing"
    return None if point.sound else "not whole: it counts for nothing"


_BUCKETS: Mapping[str, Callable[[dt.datetime], str]] = {
    "hourly": lambda moment: moment.strftime("%Y-%m-%dT%H%z"),  # autumn has one hour twice
    "daily": lambda moment: moment.strftime("%Y-%m-%d"),
    "weekly": lambda moment: moment.strftime("%G-W%V"),
    "monthly": lambda moment: moment.strftime("%Y-%m"),
    "yearly": lambda moment: moment.strftime("%Y"),
}


def _by_rules(counted: Sequence[Candidate], rules: Rules) -> dict[str, list[str]]:
    """The reasons to keep points of one series, the oldest first; other points have none."""
    reasons: dict[str, list[str]] = {}
    if not counted:
        return reasons
    newest = list(reversed(counted))
    last_stored = max(counted, key=lambda point: (point.first_stored, point.created, point.id))
    for identity in {newest[0].id, last_stored.id}:
        reasons.setdefault(identity, []).append("the last good point")
    for place, point in enumerate(newest[: rules.last], 1):
        reasons.setdefault(point.id, []).append(f"last {place}")
    zone = zoneinfo.ZoneInfo(rules.time_zone)
    for name, bucket_of in _BUCKETS.items():
        buckets: dict[str, Candidate] = {}
        for point in newest if getattr(rules, name) else ():
            buckets.setdefault(bucket_of(_local(point.created, zone)), point)
        for bucket, point in itertools.islice(buckets.items(), getattr(rules, name)):
            reasons.setdefault(point.id, []).append(f"{name} {bucket}")
    if rules.within_s:
        span = dt.timedelta(seconds=rules.within_s)
        for point in newest:
            if newest[0].created - point.created <= span:
                shown = format_seconds(rules.within_s)
                reasons.setdefault(point.id, []).append(f"within {shown} of the newest")
    return reasons


def _local(moment: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    try:
        return moment.astimezone(zone)
    except OverflowError:  # at the ends of the calendar
        return moment
