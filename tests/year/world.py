"""A daemon, a fleet and a repository in fast motion, and all that may go wrong with them.

The engine is the real one. Each run is a greenlet, which waits in true time instead of a thread's;
so a year takes seconds, and the same seed gives the same year.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from greenlet import getcurrent, greenlet

from drvm.core.errors import CaptureError, HostUnreachable, Interrupted, StoreUnreachable
from drvm.core.progress import Progress
from drvm.daemon.engine import Engine
from drvm.daemon.task import Outcome, Plan, Task
from tests.year.fleet import LIMITS, Member, is_blacked_out, members
from tests.year.history import FakeHistory, Kept
from tests.year.time import Events, HostClock

ASK_EVERY_S = 2 * 3600.0
ANSWER_TAKES_S = 200.0
LOOK_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one run was, in true time and by the clock that the host had."""

    key: tuple[str, str]
    began_s: float
    ended_s: float
    began: dt.datetime
    state: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """``host``: whose machines it is about; ``""``: everything. A ``jump`` of the clock too."""

    begin_s: float
    end_s: float
    host: str = ""
    jump: bool = False


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = HostClock()
        self.events = Events(self.clock)
        self.members = {member.key: member for member in members()}
        self.newest: dict[tuple[str, str], dt.datetime] = {}
        self.attempts: list[Attempt] = []
        self.jumps: list[tuple[float, dt.datetime]] = []
        self.troubles: list[Trouble] = []
        self.downs: list[float] = []
        self.points: Callable[[Member, dt.datetime], None] = lambda member, moment: None
        self.prune: Callable[[], None] = lambda: None
        self.store_away = False
        self.hosts_away: set[str] = set()
        self.hosts_hidden: set[str] = set()
        self.failing = 0.02
        self.violations: list[str] = []
        self.wanted_limits = dict(LIMITS)
        self.limits = dict(LIMITS)
        self.used: Counter[str] = Counter()
        self.busy: set[str] = set()
        self.most: dict[str, int] = defaultdict(int)
        self.kept = Kept()
        self.history = FakeHistory(self.kept, self.clock)
        self.engine: Engine | None = None
        self._runs: set[greenlet] = set()
        self._look_wanted = False
        self._soonest: dt.datetime | None = None
        self._armed: dt.datetime | None = None
        self._tasks: dict[tuple[str, str], Task] = {}
        self._home = getcurrent()

    def start(self) -> None:
        """A daemon begins its life."""
        self.history = FakeHistory(self.kept, self.clock)
        self.engine = Engine(self.history, self.clock, self._begin, self._wake)
        self._ask(self.engine)

    def kill(self) -> None:
        """SIGKILL: nothing that the daemon would still do is done."""
        self.history.open = False
        self.engine = None
        for run in list(self._runs):
            run.throw(KeyboardInterrupt())
        assert not self._runs

    def terminate(self) -> None:
        """SIGTERM: what runs ends at its next step, which here is at once."""
        assert self.engine is not None
        self.engine.stop()
        for run in list(self._runs):
            run.switch()
        assert not self._runs and not self.engine.abandon()
        self.engine = None

    def jump(self, seconds: float) -> None:
        """The wall clock is put forward or back."""
        self.clock.ahead_s += seconds
        self.jumps.append((self.clock.true_s, self.clock.now()))
        self.events.after(LOOK_EVERY_S, self._look)

    def suspend(self, seconds: float) -> None:
        """The host sleeps: nothing happens on it, and its monotonic clock stands still."""
        woken_s = self.clock.true_s + seconds
        self.clock.true_s = woken_s
        self.clock.asleep_s += seconds
        self.jumps.append((woken_s, self.clock.now()))
        self.events.after(LOOK_EVERY_S, self._look)

    def _wake(self) -> None:
        if not self._look_wanted:
            self._look_wanted = True
            self.events.after(0.0, self._look)

    def _look(self) -> None:
        self._look_wanted = False
        if self.engine is None:
            return
        self._soonest = self.engine.look()
        if self._soonest is not None and self._soonest != self._armed:
            wait_s = (self._soonest - self.clock.now()).total_seconds()
            self._armed = self._soonest
            self.events.after(max(0.0, wait_s) + 1e-5, self._look_at(self._soonest))

    def _look_at(self, moment: dt.datetime) -> Callable[[], None]:
        """Those that another one has taken the place of come to nothing."""

        def look() -> None:
            if moment == self._armed:
                self._armed = None
            if moment == self._soonest:
                self._wake()

        return look

    def _ask(self, engine: Engine) -> None:
        """The source looks now and has an answer later: what has ended meanwhile is not in it."""
        plan = self._plan()

        def answer() -> None:
            if engine is self.engine:
                self.limits = dict(plan.limits)
                engine.adopt(plan)
                self.events.after(ASK_EVERY_S, lambda: self._ask(engine))

        if engine is self.engine:
            self.events.after(ANSWER_TAKES_S, answer)

    def _plan(self) -> Plan:
        found = []
        for key, member in self.members.items():
            if member.host in self.hosts_hidden:
                continue
            task, newest = self._tasks.get(key), self.newest.get(key)
            if task is None or task.last_good != newest:
                task = self._tasks[key] = self._task(member, newest)
            found.append(task)
        return Plan(found, dict(self.wanted_limits))

    def _task(self, member: Member, newest: dt.datetime | None) -> Task:
        def run(progress: Progress) -> Outcome:
            return self._work(member, progress)

        return Task(
            job=member.job,
            kind=member.kind,
            timing=member.timing,
            run=run,
            vm=member.uuid,
            vm_uuid=member.uuid,
            host=member.host,
            uses=member.uses,
            order=member.order,
            retry=member.retry,
            last_good=newest if member.kind in ("backup", "drill") else None,
        )

    def _begin(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._runs.discard(getcurrent())

        made = greenlet(run, parent=self._home)
        self._runs.add(made)
        made.switch()

    def _sleep(self, seconds: float) -> None:
        run = getcurrent()

        def resume() -> None:
            if run in self._runs and run.gr_frame is not None:
                run.switch()

        self.events.after(seconds, resume)
        self._home.switch()

    def _work(self, member: Member, progress: Progress) -> Outcome:
        """Where the limits are counted, too: by nothing but what runs."""
        self._claim(self.engine is not None, "a run without a daemon")
        began_s, began = self.clock.true_s, self.clock.now()
        self._claim(not is_blacked_out(member, began), f"{member.key} began in a blackout: {began}")
        self._claim(member.uuid not in self.busy, f"two runs on {member.uuid} at {began}")
        for key in member.uses:
            self.used[key] += 1
            self.most[key] = max(self.most[key], self.used[key])
            self._claim(self.used[key] <= self.limits[key], f"{self.used[key]} use {key}: {began}")
        if member.uuid:
            self.busy.add(member.uuid)
        state = "lost"
        try:
            self._take(member, progress)
            state = "done"
        except Interrupted:
            state = "stopped"
            raise
        except (CaptureError, HostUnreachable, StoreUnreachable):
            state = "failed"
            raise
        finally:
            self.used.subtract(member.uses)
            self.busy.discard(member.uuid)
            end_s = self.clock.true_s
            self.attempts.append(Attempt(member.key, began_s, end_s, began, state))
        self._keep(member, began)
        return Outcome(result="x")

    def _claim(self, holds: bool, otherwise: str) -> None:
        """The engine takes what a run raises for a failure of the run."""
        if not holds and len(self.violations) < 20:
            self.violations.append(otherwise)

    def _take(self, member: Member, progress: Progress) -> None:
        takes_s = self.rng.uniform(member.least_s, member.most_s)
        fails = self.rng.random() < self.failing
        self._check(member)
        self._sleep(takes_s)
        progress.advance(1)
        self._check(member)
        if fails:
            raise CaptureError("it does not work today")

    def _check(self, member: Member) -> None:
        if member.host in self.hosts_away:
            raise HostUnreachable("no answer")
        if self.store_away:
            raise StoreUnreachable("no answer")

    def _keep(self, member: Member, began: dt.datetime) -> None:
        """A point is in the repository, under the date that the host's clock gave it."""
        newest = self.newest.get(member.key)
        self.newest[member.key] = began if newest is None else max(newest, began)
        if member.kind == "backup":
            self.points(member, began)
        if member.kind == "prune":
            self.prune()

    def trouble(self, seconds: float, host: str = "", *, jump: bool = False) -> None:
        now_s = self.clock.true_s
        self.troubles.append(Trouble(now_s, now_s + seconds, host, jump))
