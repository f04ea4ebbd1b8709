"""What the record of runs says in figures."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import msgspec

from drvm.notify.outbox import Outbox
from drvm.report.metrics import JobFigures, WayFigures
from drvm.runs.model import Run

FAILURES = "failures"
"""Fact: ``Failures``, counted so that a counter never goes back while history is trimmed."""

SETTLED = dt.timedelta(seconds=30)
"""So late an end is on record at most, whose file may be busy."""

_LONG_AGO = dt.datetime.fromtimestamp(0, dt.UTC)
_MAX_JOBS = 500


class Failures(msgspec.Struct, frozen=True):
    until: dt.datetime
    jobs: dict[str, int]


class RunRecord(Protocol):
    """What is needed of ``RunLog``; none of it raises."""

    def running(self) -> tuple[Run, ...]: ...
    def latest(self) -> tuple[Run, ...]: ...
    def failures(self, after: dt.datetime, until: dt.datetime) -> Mapping[str, int]: ...
    def last_good(self, job: str, vm_uuid: str = "") -> dt.datetime | None: ...
    def fact(self, key: str) -> str | None: ...
    def set_fact(self, key: str, value: str | None) -> None: ...


def job_figures(record: RunRecord, now: dt.datetime) -> tuple[JobFigures, ...]:
    """Each job over all of its VMs, by name."""
    failures = _count_failures(record, now)
    running = Counter(run.job for run in record.running())
    by_job: dict[str, list[Run]] = {job: [] for job in (*failures, *running)}
    for run in record.latest():
        by_job.setdefault(run.job, []).append(run)
    return tuple(
        JobFigures(
            job=job,
            running=running[job],
            failures=failures.get(job, 0),
            last_success=max(
                (good for run in runs if (good := record.last_good(job, run.vm_uuid)) is not None),
                default=None,
            ),
            last_duration_s=_last_duration_s(runs),
        )
        for job, runs in sorted(by_job.items())[:_MAX_JOBS]
    )


def way_figures(boxes: Mapping[str, Outbox]) -> tuple[WayFigures, ...]:
    return tuple(
        WayFigures(name, box.failed, box.lost, len(box.pending))
        for name, box in sorted(boxes.items())
    )


def _last_duration_s(runs: list[Run]) -> float | None:
    ended = [(run.ended, run) for run in runs if run.ended is not None]
    if not ended:
        return None
    end, run = max(ended, key=lambda pair: pair[0])
    return max(0.0, (end - run.started).total_seconds())


def _count_failures(record: RunRecord, now: dt.datetime) -> Mapping[str, int]:
    """What ended since the last count, and badly."""
    known = _read(record.fact(FAILURES)) or Failures(_LONG_AGO, {})
    settled = now - SETTLED
    since = min(known.until, settled)  # a clock that was set back
    jobs = Counter(known.jobs) + Counter(record.failures(since, settled))
    counted = Failures(settled, dict(jobs.most_common(_MAX_JOBS)))
    record.set_fact(FAILURES, msgspec.json.encode(counted).decode())
    return counted.jobs


def _read(text: str | None) -> Failures | None:
    try:
        return msgspec.json.decode(text, type=Failures) if text is not None else None
    except (msgspec.MsgspecError, ValueError):
        return None
