"""APScheduler is told cron's own times, also in the hour that comes twice."""

from __future__ import annotations

import datetime as dt

from drvm.daemon.trigger import CronsimTrigger


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def test_each_fire_follows_the_one_before() -> None:
    trigger = CronsimTrigger("0 3 * * *", "UTC")
    first = trigger.get_next_fire_time(None, at("2026-11-23T02:00"))
    assert first == at("2026-11-23T03:00")
    assert trigger.get_next_fire_time(first, first) == at("2026-11-24T03:00")


def test_what_a_downtime_swallowed_is_not_run_one_by_one() -> None:
    trigger = CronsimTrigger("*/5 * * * *", "UTC")
    late = trigger.get_next_fire_time(at("2026-11-23T03:00"), at("2026-11-23T09:02"))
    assert late == at("2026-11-23T09:05")


def test_the_hour_that_comes_twice_in_autumn_is_passed_and_not_repeated_for_ever() -> None:
    trigger = CronsimTrigger("30 2 * * *", "Europe/Berlin")
    fires, fire = [], at("2026-10-24T12:00")
    for _ in range(3):
        fire = trigger.get_next_fire_time(fire, fire)
        fires.append(fire)
    assert len({moment.date() for moment in fires}) == 3


def test_weekday_zero_is_sunday() -> None:
    fire = CronsimTrigger("0 3 * * 0", "UTC").get_next_fire_time(None, at("2026-11-23T00:00"))
    assert fire.strftime("%A") == "Sunday"
