"""Retention through the year: the real rules at each prune, and an oracle that knows all points."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections import defaultdict
from collections.abc import Callable, Iterable

from drvm.upkeep.retention import CLOCK_TOLERANCE, SETTLED, Candidate, Now, Rules, decide
from tests.year.fleet import Member
from tests.year.world import World

RULES = {
    **dict.fromkeys(
        ("berlin-0", "berlin-1"),
        Rules(last=3, daily=14, weekly=8, monthly=6, yearly=1, time_zone="Europe/Berlin"),
    ),
    "york-0": Rules(last=2, within_s=30 * 86400.0, time_zone="America/New_York"),
    "howe-0": Rules(daily=7, monthly=2, time_zone="Australia/Lord_Howe"),
    "hourly-0": Rules(hourly=48, daily=14, time_zone="Europe/Berlin"),
    "hourly-1": Rules(hourly=30, weekly=5, time_zone="Australia/Lord_Howe"),
}


class Retention:
    """Joined to a world, which tells of points and of prunes that were carried out."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made: dict[str, list[Candidate]] = defaultdict(list)
        self._left: dict[str, list[Candidate]] = defaultdict(list)
        self.removed = 0
        self.compared = 0
        self.wrong: list[str] = []
        world.points, world.prune = self._store, self._prune

    def _store(self, member: Member, created: dt.datetime) -> None:
        if member.uuid in RULES:
            number, stored = len(self._made[member.uuid]), self._world.clock.true()
            point = Candidate(
                f"{number:06}",
                *(member.uuid, member.uuid, member.host, created, created, stored, stored),
            )
            self._made[member.uuid].append(point)
            self._left[member.uuid].append(point)

    def _prune(self) -> None:
        now = Now(self._world.clock.now(), self._world.clock.true())
        for vm, points in self._left.items():
            decisions = decide(points, lambda point: RULES[point.vm_uuid], {}, now)
            left = [decision.point for decision in decisions if decision.kept]
            self.removed += len(points) - len(left)
            self._left[vm] = left
            if now.problem is None and now.store.day % 5 == 0:
                self.compared += 1
                expected = oracle(self._made[vm], RULES[vm], now.store)
                if {point.id for point in left} != expected:
                    self.wrong.append(f"{vm} at {now.store}: {len(left)}, not {len(expected)}")


def oracle(points: Iterable[Candidate], rules: Rules, now: dt.datetime) -> set[str]:
    """Which of all points that there ever were are there: so what was removed on the way is asked
    for again."""
    doubted = {p.id for p in points if p.created > p.stored + CLOCK_TOLERANCE}
    fresh = {p.id for p in points if p.stored > now - SETTLED}
    newest = sorted((p for p in points if p.id not in doubted), key=lambda p: (p.created, p.id))
    newest.reverse()
    zone = zoneinfo.ZoneInfo(rules.time_zone)
    kept = {p.id for p in newest[: max(1, rules.last)]} | {max(newest, key=lambda p: p.stored).id}
    kinds: list[tuple[int, Callable[[dt.datetime], object]]] = [
        (rules.hourly, lambda m: (m.date(), m.hour, m.utcoffset())),
        (rules.daily, lambda m: m.date()),
        (rules.weekly, lambda m: m.isocalendar()[:2]),
        (rules.monthly, lambda m: (m.year, m.month)),
        (rules.yearly, lambda m: m.year),
    ]
    for count, kind in kinds:
        firsts: dict[object, str] = {}
        for point in newest:
            firsts.setdefault(kind(point.created.astimezone(zone)), point.id)
        kept.update(list(firsts.values())[:count])
    span = dt.timedelta(seconds=rules.within_s)
    kept.update(p.id for p in newest if rules.within_s and newest[0].created - p.created <= span)
    return kept | doubted | fresh
