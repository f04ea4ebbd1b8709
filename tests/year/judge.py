"""What must be true of a year that is over. By its runs in true time, and not by the engine's own
words."""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drvm.schedule.cron import fires_between
from drvm.schedule.timing import Timing
from tests.year.fleet import HOUR_S, Member
from tests.year.time import START
from tests.year.world import Attempt, World

RETRIES_S = 1.5 * HOUR_S
"""All tries of one fire, with the waits in between."""
DRAINED_S = 9 * HOUR_S
"""After a trouble everything waits at once; by then the queue is as ever."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Between two jumps of the clock, in true time; then it is ahead by ``ahead_s``."""

    begin_s: float
    end_s: float
    ahead_s: float


class Judge:
    def __init__(self, world: World) -> None:
        self._world = world
        self._end_s = world.clock.true_s
        self._runs: dict[Key, list[Attempt]] = defaultdict(list)
        for attempt in sorted(world.attempts, key=lambda attempt: attempt.began_s):
            self._runs[attempt.key].append(attempt)
        self._good = {
            key: [run for run in runs if run.state == "done"] for key, runs in self._runs.items()
        }
        self._fires: dict[tuple[str, str], list[dt.datetime]] = {}
        self._stretches = list(self._between_jumps())

    def fires(self, timing: Timing) -> list[dt.datetime]:
        """Of the year, and of the days around it."""
        key = (timing.schedule, timing.time_zone)
        if key not in self._fires:
            begin = START - dt.timedelta(days=60)
            end = START + dt.timedelta(days=365 + 60)
            self._fires[key] = fires_between(*key, begin, end, limit=20_000)
        return self._fires[key]

    def faults(self) -> list[str]:
        """All that must not be, with a word for its kind. And it was a year worth judging."""
        fires, lost = self.lost()
        owed, late = self.not_caught_up()
        assert fires > self._end_s / 86400 * len(self._world.members) / 2 and owed > 0
        found = {
            "broken": self._world.violations,
            "doubled": self.doubled(),
            "lost": lost,
            "late": late,
            "stopped": self.stopped_for_good(),
            "tried": self.tried_too_often(),
        }
        return [f"{kind}: {line}" for kind, lines in found.items() for line in lines]

    def doubled(self) -> list[str]:
        """Between two good runs of a task lies a fire: by the clock at the second one, and from the
        earliest moment that it has shown since the first one."""
        found = []
        jumps = self._world.jumps
        for key, runs in self._good.items():
            fires = self.fires(self._world.members[key].timing)
            for one, other in itertools.pairwise(runs):
                walls = [w for at_s, w in jumps if one.began_s < at_s <= other.began_s]
                since = min([one.began, *walls])
                if bisect.bisect(fires, other.began) == bisect.bisect(fires, since):
                    found.append(f"{key}: good at {one.began} and, again, at {other.began}")
        return found

    def lost(self) -> tuple[int, list[str]]:
        """Each fire on a calm day has a run that begins soon after it, and a good one not long
        after that, or as many failed ones as its policy has tries. Also how many fires were
        judged."""
        judged, found = 0, []
        for key, member in self._world.members.items():
            begun = [run.began_s for run in self._runs[key]]
            good = [run.began_s for run in self._good.get(key, [])]
            failed = [run.began_s for run in self._runs[key] if run.state == "failed"]
            unquiet = self._unquiet(member)
            for fire, at_s in self._happened(member):
                by_s = at_s + member.late_s + RETRIES_S
                if by_s > self._end_s or _touches(unquiet, at_s, by_s):
                    continue
                judged += 1
                if not _any_in(begun, at_s, at_s + member.late_s):
                    found.append(f"{key}: nothing began for {fire}")
                elif not _any_in(good, at_s, by_s):
                    tries = bisect.bisect(failed, by_s) - bisect.bisect_left(failed, at_s)
                    if tries <= member.retry.times:
                        found.append(f"{key}: nothing good for {fire} after {tries} tries")
        return judged, found

    def not_caught_up(self) -> tuple[int, list[str]]:
        """What was owed when a daemon came back has begun soon after."""
        judged, found = 0, []
        for key, member in self._world.members.items():
            fires, troubles = self.fires(member.timing), self._unquiet(member, after_s=0)
            begun = [run.began_s for run in self._runs[key]]
            latest = list(itertools.accumulate((run.began for run in self._runs[key]), max))
            for up_s in () if member.blackout else self._world.downs:
                by_s = up_s + member.late_s + 600
                others = [trouble for trouble in troubles if trouble[1] > up_s + 1]
                if by_s > self._end_s or _touches(others, up_s + 1, by_s):
                    continue
                wall = self._wall(up_s)
                last = fires[bisect.bisect(fires, wall) - 1]
                before = bisect.bisect_left(begun, up_s)
                if not before or latest[before - 1] >= last:
                    continue  # begun before it went down: retries may stand
                judged += 1
                if not _any_in(begun, up_s, by_s):
                    found.append(f"{key}: owed {last} at {wall}, and nothing began")
        return judged, found

    def stopped_for_good(self) -> list[str]:
        """However the clock went: no machine stays without a good run for longer than its schedule
        and the troubles say."""
        found = []
        for key, member in self._world.members.items():
            fires = self.fires(member.timing)
            period_s = max((b - a).total_seconds() for a, b in itertools.pairwise(fires))
            allowed_s = 2 * period_s + 2 * member.late_s + RETRIES_S
            good = [run.began_s for run in self._good.get(key, [])]
            unquiet = self._unquiet(member)
            for one_s, other_s in zip([0.0, *good], [*good, self._end_s], strict=True):
                if other_s - one_s <= allowed_s:
                    continue
                lost_s = sum(
                    min(end_s, other_s) - max(begin_s, one_s)
                    for begin_s, end_s in unquiet
                    if begin_s < other_s and end_s > one_s
                )
                if other_s - one_s - lost_s > allowed_s:
                    days = (other_s - one_s) / 86400
                    found.append(f"{key}: nothing good for {days:.1f} days from {one_s:.0f} s on")
        return found

    def tried_too_often(self) -> list[str]:
        """No fire has more tries than its policy says, none comes early, and none is skipped."""
        found = []
        jumped = [at_s for at_s, _ in self._world.jumps]
        tries: dict[tuple[Key, dt.datetime], list[tuple[float, float, int]]] = defaultdict(list)
        for run in self._world.kept.all:
            assert "bug" not in run.message, run
            if run.due is not None and run.ended is not None and run.state in ("failed", "lost"):
                span_s = self._world.kept.span_s[run.id]
                tries[(run.job, run.vm_uuid), run.due].append((*span_s, run.attempt))
        for (key, due), ends in tries.items():
            retry = self._world.members[key].retry
            ends.sort()
            span = (ends[0][0], ends[-1][1])
            if any(span[0] <= at_s <= span[1] for at_s in jumped):
                continue
            if [number for _, _, number in ends] != list(range(1, len(ends) + 1)):
                found.append(f"{key}: tries {ends} of {due}")
            if len(ends) > retry.times + 1:
                found.append(f"{key}: {len(ends)} tries of {due}")
            for one, other in itertools.pairwise(ends):
                wait_s = retry.wait_s(one[2])
                if wait_s is None or other[0] - one[1] < wait_s - 1:
                    found.append(f"{key}: {other} follows {one} too soon")
        return found

    def _wall(self, at_s: float) -> dt.datetime:
        for stretch in self._stretches:
            if stretch.begin_s <= at_s <= stretch.end_s:
                return START + dt.timedelta(seconds=at_s + stretch.ahead_s)
        raise AssertionError(at_s)

    def _between_jumps(self) -> Iterator[Stretch]:
        begin_s, ahead_s = 0.0, 0.0
        for at_s, wall in self._world.jumps:
            yield Stretch(begin_s, at_s, ahead_s)
            begin_s = at_s
            ahead_s = (wall - START).total_seconds() - at_s
        yield Stretch(begin_s, self._end_s, ahead_s)

    def _happened(self, member: Member) -> Iterator[tuple[dt.datetime, float]]:
        """Each fire, and when it was in true time; not those of a time that came again."""
        fires = self.fires(member.timing)
        latest = START
        for stretch in self._stretches:
            begin = START + dt.timedelta(seconds=stretch.begin_s + stretch.ahead_s)
            end = START + dt.timedelta(seconds=stretch.end_s + stretch.ahead_s)
            again = latest + dt.timedelta(hours=3) if latest > begin else begin
            for fire in fires[bisect.bisect(fires, max(begin, again)) : bisect.bisect(fires, end)]:
                yield fire, (fire - START).total_seconds() - stretch.ahead_s
            latest = max(latest, end)

    def _unquiet(self, member: Member, after_s: float = DRAINED_S) -> list[tuple[float, float]]:
        return [
            (trouble.begin_s, trouble.end_s + after_s)
            for trouble in self._world.troubles
            if not trouble.host or trouble.host == member.host
        ]


def states(world: World) -> Counter[str]:
    return Counter(attempt.state for attempt in world.attempts)


def _touches(troubles: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> bool:
    return any(begin <= end_s and end >= begin_s for begin, end in troubles)


def _any_in(moments: Sequence[float], begin_s: float, end_s: float) -> bool:
    place = bisect.bisect_left(moments, begin_s)
    return place < len(moments) and moments[place] <= end_s
