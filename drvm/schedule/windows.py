"""Times of the week, such as ``mon-fri 08:00-18:00``: blackouts, and bandwidth by time of day.

A window holds by the clock on the wall of its time zone: in autumn's repeated hour it holds both
times, and what spring skips of it never comes. The days are those on which it begins:
``fri 22:00-06:00`` ends on Saturday.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.core.errors import UsageError

MAX_WINDOWS = 50
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_FORM = re.compile(r"(?:([a-z,-]{3,60}) )?(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_MINUTE = dt.timedelta(minutes=1)
_WEEK = dt.timedelta(days=8)
"""A week, and whatever a change of the clock adds to it."""


@dataclass(frozen=True, slots=True)
class Window:
    """``days``: 0 is Monday. Minutes count from midnight; it lasts over midnight where it ends
    before it begins."""

    days: frozenset[int]
    begin_minute: int
    end_minute: int

    def left_minutes(self, local: dt.datetime) -> int:
        """How many minutes of the wall's clock it still holds; 0: it does not."""
        minute, today = local.hour * 60 + local.minute, local.weekday()
        over_midnight = self.end_minute < self.begin_minute
        if today in self.days and minute >= self.begin_minute:
            end = self.end_minute + (_DAY_MINUTES if over_midnight else 0)
            if minute < end:
                return end - minute
        if over_midnight and (today - 1) % 7 in self.days and minute < self.end_minute:
            return self.end_minute - minute
        return 0

    def holds(self, zone: str, moment: dt.datetime) -> bool:
        return self.left_minutes(moment.astimezone(zoneinfo.ZoneInfo(zone))) > 0


def parse_window(text: str) -> Window:
    """Raises ``UsageError`` with what ``window_problem`` says."""
    found = _FORM.fullmatch(text.strip().lower()) if len(text) <= 80 else None
    if found is None:
        raise UsageError(f"{text[:80]!r} is no window, such as 'mon-fri 08:00-18:00'")
    days = _days(found[1], text)
    begin, end = (_minute(found[n], found[n + 1], text) for n in (2, 4))
    if begin == _DAY_MINUTES:
        begin = 0
    if begin == end:
        raise UsageError(f"{text!r} ends when it begins; the whole day is 00:00-24:00")
    return Window(days, begin, end)


def window_problem(text: str) -> str | None:
    """What is wrong with a window, for people."""
    try:
        parse_window(text)
    except UsageError as error:
        return error.message
    return None


def windows_problem(text: str) -> str | None:
    """The same for several, one a line, that together must leave some of the week free."""
    lines = text.splitlines()
    if len(lines) > MAX_WINDOWS:
        return f"at most {MAX_WINDOWS} windows"
    for line in lines:
        if problem := window_problem(line):
            return problem
    windows = tuple(parse_window(line) for line in lines)
    monday = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    if lines and blacked_out_until(windows, "UTC", monday) is None:
        return "these windows leave no minute of the week free"
    return None


@functools.lru_cache(4096)
def _until(windows: tuple[Window, ...], zone: str, minute: dt.datetime) -> dt.datetime | None:
    place, at, limit = zoneinfo.ZoneInfo(zone), minute, minute + _WEEK
    while at < limit:
        local = at.astimezone(place)
        left = max((window.left_minutes(local) for window in windows), default=0)
        if not left:
            return at
        after = at + left * _MINUTE
        same = after.astimezone(place).utcoffset() == local.utcoffset()
        at = after if same else at + _MINUTE
    return None


def blacked_out_until(
    windows: Sequence[Window], zone: str, moment: dt.datetime
) -> dt.datetime | None:
    """The first moment from ``moment`` on that no window holds, in UTC: itself, or a whole minute.
    ``None`` where there is none."""
    utc = moment.astimezone(dt.UTC)
    minute = utc.replace(second=0, microsecond=0)
    clear = _until(tuple(windows), zone, minute)
    return clear if clear is None else max(clear, utc)


def _days(text: str | None, whole: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if first not in _DAYS or last not in _DAYS or part.endswith("-"):
            raise UsageError(f"{whole!r} has {part!r} for days: they are {', '.join(_DAYS)}")
        begin = _DAYS.index(first)
        days.update((begin + n) % 7 for n in range((_DAYS.index(last) - begin) % 7 + 1))
    return frozenset(days)


def _minute(hour: str, minute: str, whole: str) -> int:
    minutes = int(hour) * 60 + int(minute)
    if int(minute) > 59 or minutes > _DAY_MINUTES:
        raise UsageError(f"{whole!r} has {hour}:{minute}, which is no time of day")
    return minutes
