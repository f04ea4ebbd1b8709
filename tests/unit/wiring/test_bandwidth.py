"""How fast a store is used follows the clock, also for a transfer that runs."""

from __future__ import annotations

import datetime as dt

from drvm.config.load import parse_config
from drvm.config.settings import RepositorySettings, resolve
from drvm.core.units import MIB
from drvm.wiring.assembly import _limits
from tests.fakes.clock import FakeClock

CONFIG = b"""
repository:
  url: s3://bucket/main
  bandwidth:
    upload: 100 MiB/s
    at_times:
      - {when: "mon-fri 08:00-18:00", upload: 1 MiB/s, download: 2 MiB/s}
      - {when: "00:00-24:00", download: 50 MiB/s}
    time_zone: Europe/Berlin
"""


def named() -> RepositorySettings:
    return resolve(parse_config(CONFIG, "c.yaml", {}), {}).needed_repository()


def at(text: str) -> FakeClock:
    return FakeClock(dt.datetime.fromisoformat(text))


def seconds(clock: FakeClock, wait: object) -> float:
    """For 100 MiB in pieces of 1 MiB, behind a first one that waits for none."""
    begun_s = clock.passed_s
    for _ in range(101):
        wait(MIB)  # type: ignore[operator]
    return clock.passed_s - begun_s


def test_the_limit_is_that_of_the_first_window_that_holds_in_its_time_zone() -> None:
    office = at("2026-11-23T07:01+00:00")  # a Monday, 08:01 in Berlin
    assert round(seconds(office, _limits(named(), office).upload.wait)) == 100
    early = at("2026-11-23T05:59+00:00")
    assert round(seconds(early, _limits(named(), early).upload.wait)) == 1
    assert round(seconds(early, _limits(named(), early).download.wait)) == 2


def test_a_transfer_that_runs_when_a_window_ends_goes_on_faster() -> None:
    clock = at("2026-11-23T16:59:00+00:00")  # a minute before 18:00 in Berlin
    assert 60 <= seconds(clock, _limits(named(), clock).upload.wait) < 63


def test_all_jobs_of_a_process_share_one_limit() -> None:
    clock = at("2026-11-23T07:01+00:00")
    assert _limits(named(), clock) is _limits(named(), clock)
