"""The clock's door: time comes in as an argument, so that tests can turn it."""

from __future__ import annotations

import datetime as dt
import time
from typing import Protocol

CLOCK_TOLERANCE = dt.timedelta(minutes=5)
"""How far the clocks of two hosts may differ before "in the future" means something."""


class Clock(Protocol):
    def now(self) -> dt.datetime:
        """The wall clock, aware, in UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever grow; compare differences only, within one process."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def rfc3339(moment: dt.datetime) -> str:
    """``2026-11-23T04:00:00.123456Z``: UTC always, microseconds always, so that texts sort."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339(text: str) -> dt.datetime:
    """The inverse; raises ``ValueError`` where the text has no time zone."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.astimezone(dt.UTC)


def known_moment(text: str | None) -> dt.datetime | None:
    """The same of a note that may be missing or damaged: then ``None``."""
    try:
        return None if text is None else parse_rfc3339(text)
    except ValueError:
        return None
