"""What a task is owed: by fires, points, failures, and clocks that lie."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.progress import Progress
from drvm.daemon.owed import Owed, Record, owed, recalled
from drvm.daemon.task import Outcome, Task
from drvm.runs.model import Kind, Run, State
from drvm.schedule.timing import Retry, Timing
from drvm.schedule.windows import parse_window

HOUR = dt.timedelta(hours=1)
DAY = 24 * HOUR
FIRE = dt.datetime(2026, 11, 23, 3, 0, tzinfo=dt.UTC)
DAILY = Timing("0 3 * * *")
HOURLY = Timing("0 * * * *")


def run(_: Progress) -> Outcome:
    return Outcome()


def task(
    last_good: dt.datetime | None = None,
    timing: Timing = DAILY,
    retry: Retry = Retry(3, 300.0),  # noqa: B008
    kind: Kind = "backup",
) -> Task:
    return Task("backup a", kind, timing, run, "u", "u", retry=retry, last_good=last_good)


def test_a_machine_without_any_point_is_owed_one_at_once() -> None:
    assert owed(task(), Record(), FIRE + 7 * HOUR, 0) == Owed(FIRE, FIRE, 1)


def test_a_point_older_than_the_last_fire_is_not_enough_and_a_younger_one_is() -> None:
    now = FIRE + HOUR
    assert owed(task(FIRE - HOUR), Record(), now, 0) == Owed(FIRE, FIRE, 1)
    assert owed(task(FIRE), Record(), now, 0) == Owed(FIRE + DAY, FIRE + DAY, 1)


def test_many_missed_fires_are_owed_one_run() -> None:
    found = owed(task(FIRE - 30 * DAY), Record(), FIRE + HOUR, 0)
    assert found == Owed(FIRE, FIRE - 29 * DAY, 1)
    after = Record().after(made("done", FIRE + HOUR, FIRE), 0)
    found = owed(task(FIRE - 30 * DAY), after, FIRE + 2 * HOUR, 0)
    assert found is not None and found.due == FIRE + DAY


def test_what_no_repository_tells_is_owed_from_when_it_was_first_seen() -> None:
    gc = task(kind="gc")
    with pytest.raises(LookupError):
        owed(gc, Record(), FIRE + HOUR, 0)
    seen = Record(seen=FIRE + HOUR)
    found = owed(gc, seen, FIRE + HOUR, 0)
    assert found is not None and found.due == FIRE + DAY
    assert owed(gc, seen, FIRE + DAY + HOUR, 0) == Owed(FIRE + DAY, FIRE + DAY, 1)


def made(state: State, started: dt.datetime, due: dt.datetime | None, attempt: int = 1) -> Run:
    return Run("r", "backup a", "backup", "u", "u", "", due, started, started, state, attempt)


def test_a_failure_is_tried_again_with_growing_waits_and_then_stands_until_the_next_fire() -> None:
    now, record, waits = FIRE, Record(), []
    for attempt in range(1, 5):
        record = record.after(made("failed", now, FIRE, attempt), 1000.0)
        found = owed(task(FIRE - DAY), record, now, 1000.0)
        assert found is not None
        if found.due == FIRE:
            assert found.attempt == attempt + 1
            waits.append((found.begin - now).total_seconds())
            now = found.begin
    assert waits == [300, 600, 1200] and found == Owed(FIRE + DAY, FIRE + DAY, 1)


def test_what_failed_by_what_it_found_is_not_tried_again_also_after_a_restart() -> None:
    found = dataclasses.replace(made("failed", FIRE, FIRE), result="damage")
    for record in (Record().after(found, 0.0), recalled(found, None, FIRE + HOUR, 0.0)):
        assert owed(task(FIRE - DAY), record, FIRE + HOUR, 0.0) == Owed(FIRE + DAY, FIRE + DAY, 1)


def test_a_try_that_would_come_with_the_next_fire_is_none() -> None:
    record = Record().after(made("failed", FIRE, FIRE), 0.0)
    found = owed(task(FIRE - DAY, HOURLY, Retry(3, 3600.0)), record, FIRE, 0.0)
    assert found == Owed(FIRE + HOUR, FIRE + HOUR, 1)


def test_a_stopped_run_counts_as_none_and_a_lost_one_as_a_failure() -> None:
    now = FIRE + HOUR
    stopped = recalled(made("stopped", FIRE, FIRE), None, now, 0)
    assert owed(task(FIRE - DAY), stopped, now, 0) == Owed(FIRE, FIRE, 1)
    lost = recalled(made("lost", now, FIRE), None, now, 50.0)
    found = owed(task(FIRE - DAY), lost, now, 50.0)
    assert found == Owed(FIRE, now + dt.timedelta(seconds=300), 2)


def test_a_try_that_a_stop_cut_short_begins_anew_at_once_with_its_own_number() -> None:
    now = FIRE + HOUR
    record = recalled(made("stopped", FIRE, FIRE, 3), None, now, 0)
    assert owed(task(FIRE - DAY), record, now, 0) == Owed(FIRE, now, 3)


def test_a_wait_goes_on_over_a_restart_and_never_longer_though_the_clock_went_back() -> None:
    failed = made("failed", FIRE, FIRE)
    later = FIRE + dt.timedelta(seconds=200)
    found = owed(task(FIRE - DAY), recalled(failed, None, later, 0), later, 0)
    assert found == Owed(FIRE, later + dt.timedelta(seconds=100), 2)
    ahead = dataclasses.replace(failed, ended=FIRE + 5 * DAY)
    found = owed(task(FIRE - DAY), recalled(ahead, None, FIRE, 0), FIRE, 0)
    assert found == Owed(FIRE, FIRE + dt.timedelta(seconds=300), 2)


def test_who_is_late_does_not_begin_in_a_blackout_that_has_come() -> None:
    timing = Timing("0 3 * * *", blackouts=(parse_window("08:00-18:00"),))
    found = owed(task(FIRE - DAY, timing), Record(), FIRE + 7 * HOUR, 0)
    assert found == Owed(FIRE, FIRE + 15 * HOUR, 1)


def test_jitter_longer_than_the_schedule_starves_nobody() -> None:
    timing = Timing("0 * * * *", jitter_s=3 * 3600.0)
    now, begun = FIRE, 0
    good = FIRE - HOUR
    for _ in range(24 * 12):
        now += HOUR / 12
        found = owed(task(good, timing), Record(), now, 0)
        if found is not None and found.begin <= now:
            good, begun = now, begun + 1
    assert begun >= 6


def test_a_point_from_the_future_stops_nothing_for_ever_and_brings_no_run_at_once() -> None:
    ahead = task(FIRE + 400 * DAY)
    with pytest.raises(LookupError):
        owed(ahead, Record(), FIRE - HOUR, 0)
    seen = Record(seen=FIRE - HOUR)
    assert owed(ahead, seen, FIRE - HOUR, 0) == Owed(FIRE, FIRE, 1)
    again = seen.after(made("done", FIRE, FIRE), 0)
    assert owed(ahead, again, FIRE + HOUR, 0) == Owed(FIRE + DAY, FIRE + DAY, 1)


def test_a_run_of_ones_own_from_the_future_brings_none_at_once_though_the_source_is_late() -> None:
    ahead = Record(good=FIRE + 5 * DAY, good_due=FIRE + 5 * DAY)
    with pytest.raises(LookupError):
        owed(task(FIRE - 9 * DAY), ahead, FIRE + HOUR, 0)
    seen = dataclasses.replace(ahead, seen=FIRE + HOUR)
    assert owed(task(FIRE - 9 * DAY), seen, FIRE + HOUR, 0) == Owed(FIRE + DAY, FIRE + DAY, 1)


def test_a_clock_that_goes_back_a_little_brings_no_second_run_of_the_same_fire() -> None:
    good = Record(good=FIRE + HOUR, good_due=FIRE, seen=FIRE - HOUR)
    found = owed(task(FIRE + HOUR), good, FIRE + HOUR / 2, 0)
    assert found is not None and found.due == FIRE + DAY


def test_a_clock_that_was_days_ahead_has_its_fires_again() -> None:
    good = Record(good=FIRE + 10 * HOUR, good_due=FIRE, seen=FIRE - 14 * HOUR)
    assert owed(task(FIRE + 10 * HOUR), good, FIRE + HOUR, 0) == Owed(FIRE, FIRE, 1)


@given(
    good_min=st.integers(-5000, 5000),
    own_min=st.none() | st.integers(-5000, 5000),
    failed_fire=st.none() | st.integers(-50, 50),
    tries=st.integers(1, 30),
    now_min=st.integers(-3000, 3000),
)
def test_whatever_is_known_a_run_is_owed_within_two_periods(
    good_min: int, own_min: int | None, failed_fire: int | None, tries: int, now_min: int
) -> None:
    def at(minutes: int) -> dt.datetime:
        return FIRE + minutes * dt.timedelta(minutes=1)

    now = at(now_min)
    record = Record(
        good=None if own_min is None else at(own_min),
        good_due=None if own_min is None else at(own_min // 60 * 60),
        failed_due=None if failed_fire is None else at(failed_fire * 60),
        tries=tries,
        seen=now,
    )
    found = owed(task(at(good_min), HOURLY), record, now, 0.0)
    assert found is not None and found.begin <= now + 2 * HOUR and found.attempt >= 1
