"""Fires, spread and kept out of blackouts, the same each time they are asked for."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.schedule.timing import MAX_BACKOFF_S, NO_RETRY, Retry, Timing
from drvm.schedule.windows import parse_window

FIRE = dt.datetime(2026, 11, 23, 3, 0, tzinfo=dt.UTC)
DAY = parse_window("08:00-18:00")


def test_without_jitter_and_blackouts_a_run_begins_at_its_fire() -> None:
    assert Timing("0 3 * * *").begin(FIRE, "backup a u1") == FIRE


def test_jitter_spreads_machines_evenly_over_its_length_and_the_same_way_each_time() -> None:
    timing = Timing("0 3 * * *", jitter_s=600)
    begins = [timing.begin(FIRE, f"backup a u{number}") for number in range(1000)]
    assert begins == [timing.begin(FIRE, f"backup a u{number}") for number in range(1000)]
    late_s = [(begin - FIRE).total_seconds() for begin in begins if begin is not None]
    assert 0 <= min(late_s) < 10 and 590 < max(late_s) < 600
    assert 270 < sum(late_s) / 1000 < 330
    assert timing.begin(FIRE, "u") != timing.begin(FIRE + dt.timedelta(days=1), "u")


def test_a_blackout_moves_the_begin_to_its_end_and_jitter_spreads_it_there() -> None:
    timing = Timing("0 9 * * *", jitter_s=600, blackouts=(DAY,))
    begins = {timing.begin(FIRE + dt.timedelta(hours=6), f"u{number}") for number in range(50)}
    end = dt.datetime(2026, 11, 23, 18, 0, tzinfo=dt.UTC)
    assert len(begins) == 50
    assert all(
        begin is not None and end <= begin < end + dt.timedelta(minutes=10) for begin in begins
    )


@given(st.integers(0, 2 * 1440), st.integers(0, 7200))
def test_nothing_begins_in_a_blackout_whatever_the_jitter(minutes: int, jitter_s: int) -> None:
    timing = Timing(
        "* * * * *", "Europe/Berlin", float(jitter_s), (DAY, parse_window("23:00-01:00"))
    )
    fire = FIRE + dt.timedelta(minutes=minutes)
    begin = timing.begin(fire, "u")
    assert begin is not None and begin >= fire
    assert not any(window.holds("Europe/Berlin", begin) for window in timing.blackouts)


def test_the_last_fire_is_right_also_where_the_clock_goes_to_and_fro() -> None:
    timing = Timing("0 3 * * *")
    for hours, day in ((0, 23), (23, 23), (24, 24), (-1, 22), (48, 25), (0, 23)):
        last = timing.last_fire(FIRE + dt.timedelta(hours=hours))
        assert last is not None and (last.day, last.hour) == (day, 3)


def test_each_try_waits_twice_as_long_up_to_an_hour() -> None:
    retry = Retry(times=6, after_s=300)
    waits = [retry.wait_s(attempt) for attempt in range(1, 8)]
    assert waits == [300, 600, 1200, 2400, MAX_BACKOFF_S, MAX_BACKOFF_S, None]
    assert NO_RETRY.wait_s(1) is None
    assert Retry(1, 7200.0).wait_s(1) == 7200.0


@pytest.mark.parametrize("attempt", [10**6])
def test_a_number_of_tries_beyond_measure_is_none(attempt: int) -> None:
    assert Retry(times=20).wait_s(attempt) is None
