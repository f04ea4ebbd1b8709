"""Since when something should have been done, however its runs are spread and kept out."""

from __future__ import annotations

import datetime as dt

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.wiring.due import DueTimes
from drvm.wiring.timetable import backup_name, drill_name, planned_jobs

CONFIG = """
policies:
  - {name: daily, vms: [a], schedule: "0 3 * * *", drill: {schedule: "0 5 * * 0"}}
  - {name: spread, vms: [b], schedule: "0 3 * * *", jitter: 2d}
  - name: kept
    vms: [c]
    schedule: "*/10 * * * *"
    blackouts: ["fri 18:00-24:00", "sat,sun 00:00-24:00"]
  - {name: hand, vms: [d]}
"""


def due(policy: str | None, now: str) -> str | None:
    """The last fire that should have been answered, on Tuesday, 2026-11-24, or before."""
    settings = resolve(parse_config(CONFIG.encode(), "c", {}), {})
    moment = dt.datetime.fromisoformat(now).replace(tzinfo=dt.UTC)
    found = DueTimes(planned_jobs(settings), moment).of(backup_name(policy))
    return f"{found:%a %H:%M}" if found is not None else None


@pytest.mark.parametrize(
    ("policy", "now", "fire"),
    [
        ("daily", "2026-11-24T02:59", "Sun 03:00"),
        ("daily", "2026-11-24T03:00", "Mon 03:00"),
        ("spread", "2026-11-24T02:59", "Fri 03:00"),
        ("kept", "2026-11-20T12:00", "Thu 12:00"),
        ("kept", "2026-11-23T12:00", "Fri 17:00"),  # an hour's steps: rather too late than wrong
        ("kept", "2026-11-24T00:00", "Mon 00:00"),
        ("hand", "2026-11-24T03:00", None),
        (None, "2026-11-24T03:00", None),
    ],
)
def test_what_should_have_begun_by_a_day_ago_is_due(
    policy: str | None, now: str, fire: str | None
) -> None:
    assert due(policy, now) == fire


def test_drills_have_a_schedule_of_their_own() -> None:
    settings = resolve(parse_config(CONFIG.encode(), "c", {}), {})
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    times = DueTimes(planned_jobs(settings), now)
    found = times.of(drill_name("daily"))
    assert found == dt.datetime(2026, 11, 22, 5, tzinfo=dt.UTC)
    assert times.of(drill_name("spread")) is None
