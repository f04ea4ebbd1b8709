"""Windows hold by the wall's clock, also on both DST days, and say when they are over."""

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.schedule.windows import (
    Window,
    blacked_out_until,
    parse_window,
    window_problem,
    windows_problem,
)

MINUTE = dt.timedelta(minutes=1)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def until(zone: str, moment: str, *windows: str) -> str | None:
    found = blacked_out_until([parse_window(text) for text in windows], zone, utc(moment))
    return None if found is None else f"{found:%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    "text", ["mon-fri 08:00-18:00", "22:00-06:00", "sat,sun 00:00-24:00", "fri-mon,wed 23:59-00:00"]
)
def test_these_are_windows(text: str) -> None:
    assert window_problem(text) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("always", "no window"),
        ("08:00", "no window"),
        ("8:00-9:00", "no window"),
        ("mon-fry 08:00-18:00", "mon-fry"),
        ("mon- 08:00-18:00", "mon-"),
        ("mon, 08:00-18:00", "days"),
        ("08:60-18:00", "08:60"),
        ("08:00-24:01", "24:01"),
        ("08:00-08:00", "whole day"),
        ("24:00-00:00", "whole day"),
        ("x" * 5000, "no window"),
        ("١٢:00-13:00", "no window"),
    ],
)
def test_these_are_none_and_it_says_why(text: str, word: str) -> None:
    problem = window_problem(text)
    assert problem is not None and word in problem and len(problem) < 200


def test_windows_that_leave_no_time_of_the_week_are_refused() -> None:
    assert windows_problem("") is None
    assert windows_problem("mon-fri 00:00-24:00\nsat 00:00-24:00") is None
    problem = windows_problem("mon-fri 00:00-24:00\nsat,sun 00:00-13:00\nsat,sun 12:00-24:00")
    assert problem is not None and "no minute" in problem


def test_outside_of_all_windows_a_moment_is_clear_to_the_microsecond() -> None:
    moment = utc("2026-11-23T18:00:00.000001")
    assert blacked_out_until([parse_window("08:00-18:00")], "UTC", moment) == moment


def test_inside_it_is_clear_at_the_end() -> None:
    assert until("UTC", "2026-11-23T08:00:59.5", "08:00-18:00") == "11-23 18:00:00"
    assert until("Europe/Berlin", "2026-11-23T08:00", "08:00-18:00") == "11-23 17:00:00"


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    assert until("UTC", "2026-11-28T05:00", "fri 22:00-06:00") == "11-28 06:00:00"
    assert until("UTC", "2026-11-27T05:00", "fri 22:00-06:00") == "11-27 05:00:00"


def test_windows_that_touch_are_one() -> None:
    windows = ("08:00-12:00", "12:00-14:00", "13:00-18:00")
    assert until("UTC", "2026-11-23T09:00", *windows) == "11-23 18:00:00"


def test_the_end_is_the_walls_where_the_clock_changes_in_between() -> None:
    # 2026-03-29: 02:00 CET becomes 03:00 CEST; 2026-10-25: 03:00 CEST becomes 02:00 CET.
    assert until("Europe/Berlin", "2026-03-29T00:00", "00:00-05:00") == "03-29 03:00:00"
    assert until("Europe/Berlin", "2026-10-25T00:00", "00:00-05:00") == "10-25 04:00:00"


def test_an_end_that_spring_skips_is_the_moment_after_it() -> None:
    assert until("Europe/Berlin", "2026-03-29T00:00", "00:00-02:30") == "03-29 01:00:00"


@given(
    days=st.frozensets(st.integers(0, 6), min_size=1),
    begin=st.integers(0, 1439),
    end=st.integers(0, 1440),
    zone=st.sampled_from(ZONES),
    minutes=st.integers(0, 366 * 1440),
    near=st.sampled_from(["2026-03-28", "2026-04-04", "2026-10-03", "2026-10-24", "2026-11-01"]),
)
def test_until_is_the_first_minute_that_is_clear(
    days: frozenset[int], begin: int, end: int, zone: str, minutes: int, near: str
) -> None:
    if begin == end:
        return
    window = Window(days, begin, end)
    moment = utc(near) + minutes % (3 * 1440) * MINUTE
    expected = moment
    while window.holds(zone, expected):
        expected += MINUTE
        if expected - moment > dt.timedelta(days=8):
            assert blacked_out_until([window], zone, moment) is None
            return
    assert blacked_out_until([window], zone, moment) == expected
    assert expected.astimezone(zoneinfo.ZoneInfo(zone)).utcoffset() is not None
