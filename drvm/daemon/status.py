"""How all of it is, at one look: what ``drvm status`` says, without a daemon too. Reads only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drvm.config.settings import Settings
from drvm.core.errors import DrvmError
from drvm.core.text import printable
from drvm.core.units import format_seconds
from drvm.daemon.looked import LOOKED, Looked, read_looked
from drvm.daemon.watch import silent_ways
from drvm.notify import outbox
from drvm.notify.outbox import Outbox
from drvm.notify.postman import KEY
from drvm.report.attention import Concern, attention
from drvm.report.input import ReportInput
from drvm.runs.log import RunLog
from drvm.runs.model import Run
from drvm.runs.owner import is_alive
from drvm.wiring.timetable import planned_jobs

Verdict = Literal["ok", "warning", "critical"]

LATE = dt.timedelta(minutes=5)
"""A daemon looks each minute."""
FORGOTTEN = dt.timedelta(days=30)
"""A daemon that is not there for longer is none any more: timers may have taken its place."""


@dataclass(frozen=True, slots=True)
class Record:
    """What this host's record of runs says. ``looked``: of the daemon that looked last;
    ``alive``: whether that one still runs. ``problem``: why the record can't be read."""

    running: tuple[Run, ...] = ()
    latest: tuple[Run, ...] = ()
    ways: Mapping[str, Outbox] | None = None
    looked: Looked | None = None
    alive: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """``report``: ``None`` where it could not be had; then ``problem`` says why."""

    now: dt.datetime
    verdict: Verdict
    concerns: tuple[Concern, ...]
    report: ReportInput | None
    problem: DrvmError | None
    record: Record
    upcoming: tuple[tuple[dt.datetime, str], ...]


def read_record(log: RunLog, settings: Settings) -> Record:
    looked = read_looked(log.fact(LOOKED))
    return Record(
        running=log.running(),
        latest=log.latest(),
        ways={way.name: outbox.decode(log.fact(KEY + way.name)) for way in settings.notify},
        looked=looked,
        alive=looked is not None and is_alive(looked.owner),
        problem=log.problem or "",
    )


def judge(
    settings: Settings,
    record: Record,
    report: ReportInput | None,
    problem: DrvmError | None,
    now: dt.datetime,
) -> Status:
    concerns = [
        *_blind(problem, now),
        *(attention(report) if report is not None else ()),
        *_daemon(record, now),
        *silent_ways(record.ways or {}, now),
    ]
    ordered = sorted(concerns, key=lambda concern: concern.severity != "critical")
    verdict: Verdict = "ok" if not ordered else ordered[0].severity
    upcoming = tuple(sorted(_upcoming(settings, now)))
    return Status(now, verdict, tuple(ordered), report, problem, record, upcoming)


def _blind(problem: DrvmError | None, now: dt.datetime) -> Iterator[Concern]:
    if problem is not None:
        yield Concern(
            "daemon away", "failure", "critical", "",
            f"the repository can't be looked at: {problem.message}",
            problem.hint or "drvm doctor; no point can be taken meanwhile, nor restored", now,
        )  # fmt: skip


def _daemon(record: Record, now: dt.datetime) -> Iterator[Concern]:
    looked = record.looked
    if record.problem:
        yield Concern(
            "daemon record", "failure", "warning", "",
            f"what jobs did here can't be told: {printable(record.problem, 300)}",
            "ask as the user of the daemon, usually root; or see to state_dir: room, permissions",
        )  # fmt: skip
    if looked is None or now - looked.looked > FORGOTTEN:
        return
    silent = now - looked.looked
    ago = format_seconds(max(0.0, silent.total_seconds()))
    if not record.alive:
        yield Concern(
            "daemon stopped", "failure", "warning", "",
            f"no daemon runs here any more; it last looked {ago} ago",
            "systemctl start drvm; systemctl status drvm says why it ended", looked.looked,
        )  # fmt: skip
        return
    if looked.restart_for:
        yield Concern(
            "daemon restart", "failure", "warning", "",
            f"the config has another {' and another '.join(looked.restart_for)} than the daemon",
            "systemctl restart drvm, or put the old value back", looked.config_read,
        )  # fmt: skip
    if silent > LATE and "state_dir" not in looked.restart_for:  # it notes its looks elsewhere then
        yield Concern(
            "daemon late", "failure", "critical", "",
            f"the daemon runs, but has not looked for {ago}",
            "its log says what it waits for; systemctl restart drvm", looked.looked,
        )  # fmt: skip


def _upcoming(settings: Settings, now: dt.datetime) -> Iterator[tuple[dt.datetime, str]]:
    """When each schedule fires next, or its blackout ends; jitter and limits may let it begin
    later."""
    for job in planned_jobs(settings):
        begins = job.timing.clear(job.timing.next_fire(now)) if job.timing is not None else None
        if begins is not None:
            yield begins, job.name


def counted(concerns: Sequence[Concern]) -> tuple[int, int]:
    """How many are critical, and how many warnings."""
    critical = sum(concern.severity == "critical" for concern in concerns)
    return critical, len(concerns) - critical
