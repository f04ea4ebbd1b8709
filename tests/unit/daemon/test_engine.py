"""The engine's decisions, step by step, on a clock that the test turns."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drvm.core.errors import CaptureError, Locked, UsageError
from drvm.core.progress import Progress
from drvm.daemon import engine as engine_module
from drvm.daemon.engine import PATIENCE_S, UNCLAIMED_S, Engine
from drvm.daemon.owed import POSTPONED_S
from drvm.daemon.task import Outcome, Plan, Task
from drvm.runs.log import RunLog
from drvm.schedule.timing import Retry, Timing
from tests.fakes.clock import FakeClock

DAILY = Timing("0 3 * * *")
LONG_AGO = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


class Bench:
    """Work is handed over, and done when the test says so."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.history = RunLog(path, self.clock)
        self.handed: list[Callable[[], None]] = []
        self.did: list[str] = []
        self.begin()

    def begin(self) -> None:
        """A daemon begins its life."""
        self.handed.clear()
        self.engine = Engine(self.history, self.clock, self.handed.append, lambda: None)

    def task(self, vm: str, **changes: object) -> Task:
        def run(_: Progress) -> Outcome:
            self.did.append(vm)
            return Outcome()

        made = Task("backup a", "backup", DAILY, run, vm, vm, last_good=LONG_AGO)
        return dataclasses.replace(made, **changes)  # type: ignore[arg-type]

    def look(self) -> int:
        """How many were handed over."""
        before = len(self.handed)
        self.engine.look()
        return len(self.handed) - before

    def work(self) -> None:
        while self.handed:
            self.handed.pop(0)()

    def fail(self, _: Progress) -> Outcome:
        raise CaptureError("no")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "runs.db")
    yield made
    made.history.close()


def test_a_limit_lets_the_next_one_begin_when_one_has_ended(bench: Bench) -> None:
    tasks = [bench.task(f"u{n}", uses=("host",)) for n in range(3)]
    bench.engine.adopt(Plan(tasks, {"host": 1}))
    assert [bench.look(), bench.look()] == [1, 0] and bench.engine.waiting() == 2
    bench.work()
    assert bench.look() == 1
    bench.work()
    assert bench.look() == 1 and bench.engine.waiting() == 0


def test_lower_orders_begin_first_and_then_who_waits_longest(bench: Bench) -> None:
    early = bench.task("early", uses=("one",), order=1, timing=Timing("0 1 * * *"))
    late = bench.task("late", uses=("one",), order=1)
    first = bench.task("first", uses=("one",))
    bench.engine.adopt(Plan([late, early, first], {"one": 1}))
    for _ in range(3):
        bench.look()
        bench.work()
    assert bench.did == ["first", "early", "late"]


def test_who_waited_for_a_day_is_passed_no_more_by_those_of_lower_orders(bench: Bench) -> None:
    """A first policy with more to do than there is time would starve all others."""
    busy, hourly = bench.clock.now(), Timing("0 * * * *")
    patient = bench.task("patient", uses=("one",), order=1, last_good=busy)
    for hour in range(52):
        good = bench.clock.now() - dt.timedelta(hours=2)
        first = [bench.task(f"u{n}", uses=("one",), timing=hourly, last_good=good) for n in (1, 2)]
        bench.engine.adopt(Plan([patient, *first], {"one": 1}))
        bench.look()
        bench.work()
        assert hour < 48 or "patient" in bench.did, "due after 23 h"
        bench.clock.sleep(3600)
    assert bench.did.count("patient") == 1


def test_no_two_runs_touch_one_machine(bench: Bench) -> None:
    group = bench.task("group", touches=frozenset({"u1", "u2"}))
    bench.engine.adopt(Plan([group, bench.task("u2"), bench.task("u3")]))
    assert bench.look() == 2
    bench.work()
    assert bench.look() == 1


def test_what_is_asked_for_goes_before_what_is_due_and_is_not_asked_twice(bench: Bench) -> None:
    bench.engine.adopt(Plan([bench.task("u1", uses=("one",))], {"one": 1}))
    wanted = bench.task("u2", uses=("one",))
    identity = bench.engine.ask(wanted)
    assert bench.engine.ask(wanted) == identity
    bench.look()
    assert [run.id for run in bench.engine.running()] == [identity]


def test_a_flood_of_requests_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_ASKED", 2)
    bench.engine.ask(bench.task("u1"))
    bench.engine.ask(bench.task("u2"))
    with pytest.raises(UsageError):
        bench.engine.ask(bench.task("u3"))


def test_a_run_that_no_thread_takes_up_fails_and_never_begins_later(bench: Bench) -> None:
    bench.engine.adopt(Plan([bench.task("u1")]))
    assert bench.look() == 1
    bench.clock.sleep(UNCLAIMED_S + 1)
    bench.look()
    assert bench.engine.running() == ()
    assert [run.state for run in bench.history.latest()] == ["failed"]
    bench.work()
    assert bench.did == []


def test_after_a_stop_nothing_that_was_handed_over_begins(bench: Bench) -> None:
    bench.engine.adopt(Plan([bench.task("u1")]))
    bench.look()
    bench.engine.stop()
    bench.work()
    assert bench.did == [] and bench.engine.abandon() == ()


def test_a_host_that_is_away_for_a_while_takes_no_failed_tries_with_it(bench: Bench) -> None:
    task = bench.task("u1", run=bench.fail, retry=Retry(1, 60.0))
    bench.engine.adopt(Plan([task]))
    for seconds in (0, 61):
        bench.clock.sleep(seconds)
        bench.look()
        bench.work()
    bench.engine.adopt(Plan([]))
    bench.clock.sleep(3600)
    bench.engine.adopt(Plan([task]))
    assert bench.look() == 0
    assert [run.attempt for run in bench.history.recent(5)] == [2, 1]


def test_tries_and_good_runs_outlive_the_daemon(bench: Bench) -> None:
    failing = bench.task("u1", run=bench.fail, retry=Retry(1, 600.0))
    gc = bench.task("", job="gc", kind="gc", last_good=None)
    bench.engine.adopt(Plan([failing, gc]))
    bench.clock.sleep(24 * 3600)
    bench.look()
    bench.work()
    bench.begin()
    bench.engine.adopt(Plan([failing, gc]))
    assert bench.look() == 0
    bench.clock.sleep(601)
    assert bench.look() == 1


def test_a_task_that_cannot_be_reckoned_stops_no_other(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    naive = dt.datetime(2026, 11, 1)
    bench.engine.adopt(Plan([bench.task("u1", last_good=naive), bench.task("u2")]))
    assert bench.look() == 1
    assert "this is a bug" in caplog.text


def test_a_clock_put_back_is_noticed_and_the_next_fire_still_comes(bench: Bench) -> None:
    bench.engine.adopt(Plan([bench.task("u1")]))
    bench.look()
    bench.work()
    bench.clock.wall -= dt.timedelta(days=3)
    assert bench.look() == 0 and bench.engine.jumps == 1
    bench.clock.sleep(24 * 3600)
    assert bench.look() == 1


def test_limits_of_a_new_plan_count_what_runs_already(bench: Bench) -> None:
    tasks = [bench.task(f"u{n}", uses=("host",)) for n in range(4)]
    bench.engine.adopt(Plan(tasks, {"host": 3}))
    assert bench.look() == 3
    bench.engine.adopt(Plan(tasks, {"host": 1}))
    bench.handed.pop(0)()
    bench.handed.pop(0)()
    assert bench.look() == 0
    bench.handed.pop(0)()
    assert bench.look() == 1


def test_what_somebody_else_works_on_is_put_off_and_uses_up_no_retry(bench: Bench) -> None:
    def busy(_: Progress) -> Outcome:
        bench.did.append("busy")
        raise Locked("another host backs it up")

    retry = Retry(times=1, after_s=300)
    bench.engine.adopt(Plan([bench.task("u1", run=busy, retry=retry)]))
    for _ in range(12):
        assert bench.look() == 1
        bench.work()
        assert bench.look() == 0
        bench.clock.sleep(POSTPONED_S)
    assert [(run.state, run.attempt) for run in bench.history.latest()] == [("stopped", 1)]
    bench.engine.adopt(Plan([bench.task("u1", retry=retry, last_good=bench.clock.now())]))
    assert bench.look() == 0


def test_what_is_put_off_for_a_day_without_a_new_point_is_a_failure(bench: Bench) -> None:
    def busy(_: Progress) -> Outcome:
        raise Locked("somebody works on it")

    tell = bench.history.latest
    bench.engine.adopt(Plan([bench.task("u1", run=busy, last_good=LONG_AGO)]))
    bench.look()
    bench.work()
    bench.clock.sleep(PATIENCE_S + 60)
    newer = LONG_AGO + dt.timedelta(hours=1)
    bench.engine.adopt(Plan([bench.task("u1", run=busy, last_good=newer)]))
    bench.look()
    bench.work()
    assert tell()[0].state == "stopped"  # there was a new point meanwhile
    bench.clock.sleep(PATIENCE_S + 60)
    bench.look()
    bench.work()
    assert tell()[0].state == "failed" and "put off for a day: somebody" in tell()[0].message
