import datetime as dt
import zoneinfo
from collections.abc import Collection
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import UsageError
from drvm.schedule.cron import (
    expression_problem,
    fires_between,
    last_fire,
    next_fire,
    time_zone_problem,
)

BERLIN = "Europe/Berlin"


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def fires(expression: str, zone: str, after: str, until: str, limit: int = 200) -> list[str]:
    found = fires_between(expression, zone, utc(after), utc(until), limit=limit)
    return [f"{fire:%m-%d %H:%M}" for fire in found]


def test_a_time_of_day_is_that_of_the_zone() -> None:
    assert next_fire("0 3 * * *", BERLIN, utc("2026-11-23T06:00")) == utc("2026-11-24T02:00")


def test_the_next_fire_is_strictly_later() -> None:
    assert next_fire("0 3 * * *", "UTC", utc("2026-11-23T03:00")) == utc("2026-11-24T03:00")


def test_seconds_and_fractions_do_not_matter() -> None:
    after = utc("2026-11-23T02:59:59.999999")
    assert next_fire("0 3 * * *", "UTC", after) == utc("2026-11-23T03:00")


def test_the_hour_that_autumn_repeats_fires_once() -> None:
    # 2026-10-25: 03:00 CEST becomes 02:00 CET; 02:30 comes at 00:30 and 01:30 UTC.
    assert fires("30 2 * * *", BERLIN, "2026-10-24T12:00", "2026-10-26T12:00") == [
        "10-25 00:30",
        "10-26 01:30",
    ]


@pytest.mark.parametrize("minute", range(0, 120, 10))
def test_starting_inside_the_repeated_hour_never_fires_in_the_past(minute: int) -> None:
    after = utc("2026-10-25T00:00") + dt.timedelta(minutes=minute)
    expected = "2026-10-25T00:30" if minute < 30 else "2026-10-26T01:30"
    assert next_fire("30 2 * * *", BERLIN, after) == utc(expected)


def test_the_hour_that_spring_skips_fires_once() -> None:
    # 2026-03-29: 02:00 CET becomes 03:00 CEST; 02:30 does not exist.
    assert fires("30 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-30T12:00") == [
        "03-29 01:00",
        "03-30 00:30",
    ]


@pytest.mark.parametrize("minute", range(0, 120, 10))
def test_starting_around_the_skipped_hour_fires_once(minute: int) -> None:
    after = utc("2026-03-29T00:00") + dt.timedelta(minutes=minute)
    expected = "2026-03-29T01:00" if minute < 60 else "2026-03-30T00:30"
    assert next_fire("30 2 * * *", BERLIN, after) == utc(expected)


def test_an_hourly_job_follows_real_time_on_the_long_day() -> None:
    assert len(fires("0 * * * *", BERLIN, "2026-10-24T21:59", "2026-10-25T22:59")) == 25


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        *[("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04")],
        *[("America/Havana", "2026-03-08"), ("America/Havana", "2026-11-01")],
        *[(BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), ("Antarctica/Troll", "2026-03-29")],
        ("Pacific/Apia", "2011-12-30"),
    ],
)
@pytest.mark.parametrize(
    ("expression", "minutes", "hours", "days"),
    [
        ("30 * * * *", {30}, range(24), range(7)),
        ("0 */6 * * *", {0}, {0, 6, 12, 18}, range(7)),
        ("*/10 1-2 * * 0", range(0, 60, 10), {1, 2}, {6}),
    ],
)
def test_jobs_of_the_hour_fire_whenever_the_wall_clock_says_so(
    expression: str,
    minutes: Collection[int],
    hours: Collection[int],
    days: Collection[int],
    zone: str,
    day: str,
) -> None:
    """Also where the clock changes by half an hour, at midnight, or leaves a day out."""
    begin = utc(day) - dt.timedelta(hours=20)
    every = [begin + dt.timedelta(minutes=number) for number in range(1, 48 * 60)]
    expected = [
        moment
        for moment, wall in ((at, at.astimezone(zoneinfo.ZoneInfo(zone))) for at in every)
        if wall.minute in minutes and wall.hour in hours and wall.weekday() in days
    ]
    assert fires_between(expression, zone, begin, every[-1], limit=1000) == expected
    assert all(next_fire(expression, zone, at) == later for at, later in pairwise(expected))


def test_a_job_of_a_day_that_a_zone_left_out_fires_when_the_next_one_begins() -> None:
    assert fires("0 3 * * *", "Pacific/Apia", "2011-12-29T00:00", "2011-12-31T23:00") == [
        "12-29 13:00",
        "12-30 10:00",
        "12-30 13:00",
        "12-31 13:00",
    ]


def test_sunday_is_0_and_7() -> None:
    for day in "07":
        fire = next_fire(f"0 5 * * {day}", "UTC", utc("2026-11-23T00:00"))
        assert fire == utc("2026-11-29T05:00")


def test_day_of_month_or_day_of_week_as_cron_has_it() -> None:
    assert fires("0 0 1 * 1", "UTC", "2026-11-29T12:00", "2026-12-08T00:00") == [
        "11-30 00:00",
        "12-01 00:00",
        "12-07 00:00",
    ]


def test_fires_after_a_long_downtime_are_bounded() -> None:
    assert len(fires("* * * * *", "UTC", "2020-01-01T00:00", "2026-01-01T00:00", 100)) == 100


def test_nothing_is_due_between_a_run_and_the_next_time() -> None:
    assert fires("0 3 * * *", "UTC", "2026-11-23T03:00", "2026-11-24T02:59") == []


@pytest.mark.parametrize(
    "expression",
    [
        *["", "* * * *", "* * * * * *", "@daily", "60 * * * *", "0 24 * * *", "0 0 30 2 *"],
        *["* * * * mon-xyz", "*/0 * * * *", "5-1 * * * *", "0 0 0 * *", f"{'1,' * 200}1 * * * *"],
    ],
)
def test_what_cron_does_not_know_is_explained(expression: str) -> None:
    assert expression_problem(expression)
    with pytest.raises(UsageError):
        next_fire(expression, "UTC", utc("2026-11-23T00:00"))


@pytest.mark.parametrize(
    "expression", ["0 3 * * *", "*/15 0-6 1,15 JAN-MAR mon#1", "0 0 L * *", "59 23 29 2 *"]
)
def test_what_cron_knows_is_no_problem(expression: str) -> None:
    assert expression_problem(expression) is None


@pytest.mark.parametrize(
    "name", ["", "Mars/Base", "../../etc/passwd", "/etc/passwd", "Europe", "\0"]
)
def test_what_is_no_time_zone_is_explained(name: str) -> None:
    assert time_zone_problem(name)


@given(st.text(max_size=40) | st.from_regex(r"[0-9*/,LW#-]{1,6}( [0-9*/,LW#-]{1,6}){4}"))
def test_any_expression_is_judged_without_an_exception(expression: str) -> None:
    problem = expression_problem(expression)
    assert problem is None or problem


@given(
    st.sampled_from(["30 2 * * *", "*/7 2 * * *", "15 1-3 * * *", "0 */5 * * *", "* 2 * * 0"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]),
    st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2030, 1, 1)),
)
def test_fires_rise_and_do_not_depend_on_where_one_starts(
    expression: str, zone: str, naive: dt.datetime
) -> None:
    start = naive.replace(tzinfo=dt.UTC)
    together = fires_between(expression, zone, start, start + dt.timedelta(days=400), limit=12)
    assert all(earlier < later for earlier, later in pairwise([start, *together]))
    one_by_one = []
    for _ in together:
        start = next_fire(expression, zone, start)
        one_by_one.append(start)
    assert one_by_one == together


@given(
    expression=st.sampled_from(
        ["0 3 * * *", "*/7 * * * *", "30 2 * * *", "* 0 * * *", "0 5 * * 0", "0 0 29 2 *"]
    ),
    zone=st.sampled_from(["UTC", BERLIN, "Australia/Lord_Howe", "America/New_York"]),
    minutes=st.integers(0, 400 * 1440),
)
def test_the_last_fire_is_the_one_before_the_next(expression: str, zone: str, minutes: int) -> None:
    now = utc("2026-02-27T00:00") + dt.timedelta(minutes=minutes, seconds=minutes % 60)
    last = last_fire(expression, zone, now)
    assert last is not None and last <= now < next_fire(expression, zone, last)


def test_a_fire_is_its_own_last_one() -> None:
    assert last_fire("0 3 * * *", "UTC", utc("2026-11-23T03:00")) == utc("2026-11-23T03:00")
