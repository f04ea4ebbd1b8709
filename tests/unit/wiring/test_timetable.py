"""One list of jobs for all who speak of them."""

from __future__ import annotations

import datetime as dt

from drvm.config.load import parse_config
from drvm.config.settings import Settings, resolve
from drvm.daemon.status import Record, judge
from drvm.schedule.timing import Retry
from drvm.wiring.timetable import UPKEEP_RETRY, planned_jobs

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)
CONFIG = """
repository: {url: "s3://bucket", object_lock: {mode: governance, days: 7}}
policies:
  - name: nightly
    vms: ["*"]
    schedule: "0 3 * * *"
    jitter: 10m
    blackouts: ["mon-fri 08:00-18:00"]
    retry: {times: 2, after: 60s}
    drill: {schedule: "0 5 * * 0"}
  - {name: by-hand, vms: ["misc"]}
prune: {schedule: "0 6 * * *"}
copies:
  - {name: offsite, repository: {url: "file:///srv/offsite"}, schedule: "0 7 * * *"}
"""


def settings(text: str = CONFIG) -> Settings:
    return resolve(parse_config(text.encode(), "config.yaml", {}), {})


def test_every_job_of_a_config_is_there_once_with_those_without_a_schedule() -> None:
    jobs = planned_jobs(settings())
    assert [(job.name, job.kind, job.timing is not None) for job in jobs] == [
        ("backup nightly", "backup", True),
        ("drill nightly", "drill", True),
        ("backup by-hand", "backup", False),
        ("prune", "prune", True),
        ("gc", "gc", False),
        ("check", "check", False),
        ("locks", "locks", True),
        ("copy offsite", "copy", True),
    ]


def test_backups_and_drills_are_spread_kept_out_and_tried_again_as_their_policy_says() -> None:
    backup, drill = planned_jobs(settings())[:2]
    assert backup.retry == drill.retry == Retry(2, 60.0)
    assert backup.timing is not None and drill.timing is not None
    assert backup.timing.jitter_s == drill.timing.jitter_s == 600.0
    assert backup.timing.blackouts == drill.timing.blackouts != ()
    assert {job.retry for job in planned_jobs(settings()) if job.policy is None} == {UPKEEP_RETRY}


def test_locks_are_lengthened_only_where_objects_are_locked() -> None:
    bare = CONFIG.replace(", object_lock: {mode: governance, days: 7}", "")
    assert "locks" not in [job.name for job in planned_jobs(settings(bare))]


def test_status_tells_the_next_time_of_all_that_has_a_schedule_locks_among_them() -> None:
    status = judge(settings(), Record(), None, None, NOW)
    assert [name for _, name in status.upcoming] == [
        "copy offsite",
        "backup nightly",
        "locks",
        "prune",
        "drill nightly",
    ]
