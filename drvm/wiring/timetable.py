"""The jobs of a config: what they are called, when they are due, and who tries again when.

One list for all who speak of them: the daemon, ``drvm run``, ``drvm status`` and the report. A job
has the name that the record of runs keeps and people use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drvm.config.policies import PolicyConfig
from drvm.config.repositories import CopyConfig
from drvm.config.section import ScheduledSection
from drvm.config.settings import Settings
from drvm.runs.model import Kind
from drvm.schedule.timing import Retry, Timing
from drvm.schedule.windows import parse_window

UPKEEP_RETRY = Retry(times=3, after_s=600.0)
"""Of jobs of the repository."""

LOCKS_TIMING = Timing("17 4 * * *")
"""Once a day: a quarter of the shortest lock there may be."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """``timing``: ``None`` where only somebody's asking begins it. ``policy``: of backups and
    drills; ``copy``: of copies."""

    name: str
    kind: Kind
    timing: Timing | None
    retry: Retry
    policy: PolicyConfig | None = None
    copy: CopyConfig | None = None


def planned_jobs(settings: Settings) -> tuple[PlannedJob, ...]:
    """All that the config knows, whether they have a schedule or not; policies first."""
    return (*_of_policies(settings), *_of_repository(settings))


def backup_name(policy: str | None) -> str:
    """Of the job that backs a policy's machines up; ``None``: a name that no job has."""
    return f"backup {policy or ''}"


def drill_name(policy: str | None) -> str:
    return f"drill {policy or ''}"


def group_subject(policy: PolicyConfig, host_uri: str) -> str:
    """What stands for the UUID of a VM in runs that back all of a policy's on a host up at once.
    Drills of a group have the policy's own name there."""
    return f"{policy.name} on {host_uri}"


def _of_policies(settings: Settings) -> Iterator[PlannedJob]:
    for policy in settings.policies:
        retry = Retry(policy.retry.times, policy.retry.after_s)
        timing = _timing(policy, policy.schedule, policy.jitter_s)
        yield PlannedJob(backup_name(policy.name), "backup", timing, retry, policy)
        if policy.drill is not None:
            timing = _timing(policy, policy.drill.schedule, policy.jitter_s)
            yield PlannedJob(drill_name(policy.name), "drill", timing, retry, policy)


def _of_repository(settings: Settings) -> Iterator[PlannedJob]:
    sections: tuple[tuple[Kind, ScheduledSection], ...] = (
        ("prune", settings.prune),
        ("gc", settings.gc),
        ("check", settings.check),
    )
    for kind, section in sections:
        yield PlannedJob(kind, kind, _timing(section, section.schedule), UPKEEP_RETRY)
    if settings.repository is not None and settings.repository.object_lock is not None:
        yield PlannedJob("locks", "locks", LOCKS_TIMING, UPKEEP_RETRY)
    for copy in settings.copies:
        timing = _timing(copy, copy.schedule)
        yield PlannedJob(f"copy {copy.name}", "copy", timing, UPKEEP_RETRY, copy=copy)


def _timing(
    section: ScheduledSection, schedule: str | None, jitter_s: float | None = None
) -> Timing | None:
    if schedule is None:
        return None
    blackouts = tuple(parse_window(text) for text in section.blackouts)
    return Timing(schedule, section.time_zone, jitter_s or 0.0, blackouts)
