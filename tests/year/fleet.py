"""The fleet of the simulated year: what is to be done, by whose clock, within which limits."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from dataclasses import dataclass

from drvm.runs.model import Kind
from drvm.schedule.timing import Retry, Timing
from drvm.schedule.windows import parse_window

HOUR_S = 3600.0
HOSTS = tuple(f"qemu+ssh://kvm{number}/system" for number in range(6))
LIMITS = {"backups": 8, "store": 7, "drills": 2, "upkeep": 1, **dict.fromkeys(HOSTS, 3)}
RETRY = Retry(times=3, after_s=300.0)


@dataclass(frozen=True, slots=True)
class Member:
    """A task's steady part. Its runs take from ``least_s`` to ``most_s``. ``late_s``: how long
    after its fire it may begin on a calm day, with all that waits for the same limits;
    ``blackout``: the hours of the zone's working days in which none may begin."""

    job: str
    kind: Kind
    uuid: str
    host: str
    timing: Timing
    uses: tuple[str, ...]
    order: int
    least_s: float
    most_s: float
    late_s: float
    blackout: tuple[int, int] | None = None
    retry: Retry = RETRY

    @property
    def key(self) -> tuple[str, str]:
        return (self.job, self.uuid)


def _vms(
    job: str, count: int, timing: Timing, late_h: float, blackout: tuple[int, int] | None = None
) -> list[Member]:
    found = []
    for number in range(count):
        host = HOSTS[number % len(HOSTS)]
        uses = ("backups", "store", host)
        uuid = f"{job}-{number}"
        found.append(
            Member(
                *(f"backup {job}", "backup", uuid, host, timing, uses, 1),
                *(60.0, 900.0, late_h * HOUR_S, blackout),
            )
        )
    return found


def members() -> list[Member]:
    """200 machines daily, on both sides of the world, so that each zone's clock changes in the
    middle of it; 10 hourly; drills of some, and the jobs of the repository."""
    office = (parse_window("mon-fri 08:00-18:00"),)
    berlin, new_york, lord_howe = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
    found = [
        *_vms("berlin", 90, Timing("30 2 * * *", berlin, 2700.0), 8),
        *_vms("york", 60, Timing("30 2 * * *", new_york, 600.0, office), 8, (8, 18)),
        *_vms("howe", 40, Timing("15 2 * * *", lord_howe), 8),
        *_vms("noon", 10, Timing("0 9 * * *", berlin, 3600.0, office), 18, (8, 18)),
    ]
    for number in range(10):
        uses = ("backups", "store", HOSTS[number % 6])
        timing = Timing("17 * * * *", "UTC", 120.0)
        least_s, most_s, late_s = 30.0, 200.0, 2400.0
        uuid = f"hourly-{number}"
        hourly = ("backup hourly", "backup", uuid, HOSTS[number % 6], timing, uses, 0)
        found.append(Member(*hourly, least_s, most_s, late_s))
    weekly = Timing("0 5 * * 0", berlin, 1800.0)
    for number in range(12):
        drill = ("drill weekly", "drill", f"berlin-{number}", "", weekly, ("drills",), 2)
        found.append(Member(*drill, 300.0, 1800.0, 12 * HOUR_S, None, Retry(1, 900.0)))
    upkeep: list[tuple[Kind, str]] = [
        ("prune", "0 13 * * *"),
        ("gc", "0 15 * * *"),
        ("copy", "30 6 * * *"),
        ("check", "0 10 1 * *"),
    ]
    for kind, schedule in upkeep:
        job = (kind, kind, "", "", Timing(schedule, berlin), ("upkeep",), 3)
        found.append(Member(*job, 60.0, 3600.0, 8 * HOUR_S))
    return found


def is_blacked_out(member: Member, moment: dt.datetime) -> bool:
    """Not by the code under test."""
    if member.blackout is None:
        return False
    local = moment.astimezone(zoneinfo.ZoneInfo(member.timing.time_zone))
    begin, end = member.blackout
    return local.weekday() < 5 and begin <= local.hour < end
