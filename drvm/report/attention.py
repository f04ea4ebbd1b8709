"""What is wrong, what to do about it, and in which order: the one judgement of it.

The report page, ``drvm status``, metrics, notifications and the dashboard all show these concerns.
A concern's ``key`` stays the same as long as the same thing is wrong, whatever its words say.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from drvm.core.units import format_round_seconds, format_seconds
from drvm.report.input import CheckRow, JobRow, ReportInput, RunRow, VmRow

ConcernKind = Literal["failure", "rpo", "drill", "damage", "unprotected"]
Severity = Literal["critical", "warning"]

GONE_FOR = dt.timedelta(days=30)
"""How long a VM that is gone is asked about; then it is taken to be gone for good."""

RETRIED_WITHIN = dt.timedelta(days=1)
"""How long after its time a retry may still not have begun; then nobody tries again any more."""

_KINDS: tuple[ConcernKind, ...] = ("damage", "rpo", "drill", "failure", "unprotected")
_LONG_AGO = dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Concern:
    """``vm``: its name, ``""`` for what is no VM's; ``vm_uuid`` likewise. ``text`` is a line
    without full stop, ``hint`` what to do next. ``since``: when it became so, where that is
    known. Texts may hold what guests and hosts said: they are printable only after ``printable``.
    """

    key: str
    kind: ConcernKind
    severity: Severity
    vm: str
    text: str
    hint: str
    since: dt.datetime | None = None
    vm_uuid: str = ""


def attention(report: ReportInput) -> tuple[Concern, ...]:
    """What is critical first, and of each kind what is so for longest."""
    concerns = [
        *_damage(report),
        *_hosts(report),
        *(concern for row in report.vms for concern in _vm(report, row)),
        *(concern for run in report.runs for concern in _failed_run(report, run)),
        *(concern for job in report.jobs for concern in _overdue_job(job)),
    ]
    return tuple(sorted(concerns, key=_order))


def _order(concern: Concern) -> tuple[bool, int, dt.datetime, str, str]:
    since = concern.since or _LONG_AGO
    severe = concern.severity != "critical"
    return severe, _KINDS.index(concern.kind), since, concern.vm, concern.key


def _vm(report: ReportInput, row: VmRow) -> Iterator[Concern]:
    if not row.machine or (row.policy is None and row.doubt):
        return  # nothing is due; or a host is away, which is a concern of its own
    if row.gone:
        yield from _gone(report, row)
        return
    if row.policy is None:
        yield Concern(
            f"unprotected {row.vm_uuid}", "unprotected", "warning", row.vm,
            "no policy covers it: nothing backs it up",
            "name it in a policy's vms, or give it a tag of one; exclude it where that is meant",
            row.last_point_created, row.vm_uuid,
        )  # fmt: skip
        return
    if row.held:
        yield Concern(
            f"held {row.vm_uuid}", "failure", "warning", row.vm, f"it is not backed up: {row.held}",
            "if that host is gone for good, take it out of hosts in the config, or start the VM"
            " here; undefine what a move left behind", None, row.vm_uuid,
        )  # fmt: skip
    yield from _rpo(row)
    yield from _backup_due(report, row)
    yield from _drills(report, row)


def _gone(report: ReportInput, row: VmRow) -> Iterator[Concern]:
    last = row.last_point_created
    if row.elsewhere and row.rpo_state in ("met", "no-target"):
        return
    if row.policy is not None and last is not None and report.generated - last < GONE_FOR:
        yield Concern(
            f"gone {row.vm_uuid}", "unprotected", "warning", row.vm,
            "it is on none of the hosts any more, so nothing backs it up; its points are kept",
            f"if it moved, add its host to hosts; if it is lost, drvm restore {_shell(row)}",
            last, row.vm_uuid,
        )  # fmt: skip


def _rpo(row: VmRow) -> Iterator[Concern]:
    key = f"rpo {row.vm_uuid}"
    if row.rpo_state == "never":
        yield Concern(
            key, "rpo", "critical", row.vm,
            "there is no good point: it could not be recovered at all",
            f"drvm backup {_shell(row)}", None, row.vm_uuid,
        )  # fmt: skip
    elif row.rpo_state == "unknown":
        yield Concern(
            key, "rpo", "warning", row.vm,
            "its last point lies in the future: a clock is wrong, and nobody can tell its age",
            "set the clocks of all hosts by NTP; drvm doctor", None, row.vm_uuid,
        )  # fmt: skip
    elif row.rpo_state == "missed":
        age, target = row.rpo_age_seconds or 0.0, row.rpo_target_seconds or 0.0
        since = row.last_point_created
        yield Concern(
            key, "rpo", "critical", row.vm,
            f"its last good point is {format_seconds(age)} old, and may be"
            f" {format_round_seconds(target)} (RPO)",
            f"drvm backup {_shell(row)}",
            since + dt.timedelta(seconds=target) if since is not None else None, row.vm_uuid,
        )  # fmt: skip


def _backup_due(report: ReportInput, row: VmRow) -> Iterator[Concern]:
    """Nothing began, which no failure tells: no daemon, no room in its queue, a timer that is gone.
    Where the RPO is missed, that says more."""
    last, due = row.last_point_created, row.backup_due
    if row.rpo_state not in ("met", "no-target") or last is None or due is None or last >= due:
        return
    subjects = (row.vm_uuid, f"{row.policy} on {row.host}")
    failed = (run for run in report.runs if run.state in ("failed", "lost"))
    if any(run.kind == "backup" and run.vm_uuid in subjects for run in failed):
        return
    yield Concern(
        f"backup-due {row.vm_uuid}", "rpo", "warning", row.vm,
        f"it was not backed up as often as meant, last at {last:%Y-%m-%d %H:%M} UTC",
        f"drvm backup {row.vm}; drvm status says whether the daemon runs", due, row.vm_uuid,
    )  # fmt: skip


def _drills(report: ReportInput, row: VmRow) -> Iterator[Concern]:
    drills = report.drills_of(row.vm_uuid)
    last = drills[0] if drills else None
    if last is not None and not last.passed:
        failed_since = last.started
        for drill in drills:
            if drill.passed:
                break
            failed_since = drill.started
        yield Concern(
            f"drill {row.vm_uuid}", "drill", "critical", row.vm,
            f"its last drill failed: {last.why_failed}",
            "see what its checks found; back up again, or put the check right, then"
            f" drvm drill {_shell(row)}",
            failed_since, row.vm_uuid,
        )  # fmt: skip
    elif last is not None and last.rto_met is False:
        yield Concern(
            f"rto {row.vm_uuid}", "drill", "warning", row.vm,
            f"recovery took {format_seconds(last.rto_seconds or 0.0)}, and may take"
            f" {format_round_seconds(last.rto_target_seconds or 0.0)} (RTO)",
            "look where the time went: a faster store, drill.method: boot, or another target",
            last.started, row.vm_uuid,
        )  # fmt: skip
    due = row.drill_due
    if due is None or (last is not None and last.started >= due):
        return
    if row.first_point_created is None or row.first_point_created >= due:
        return
    words = "it has never been drilled" if last is None else "it was not drilled as often as meant"
    yield Concern(
        f"drill-due {row.vm_uuid}", "drill", "warning", row.vm, words,
        f"drvm drill {_shell(row)}; drvm status says whether the daemon runs", due,
        row.vm_uuid,
    )  # fmt: skip


def _shell(row: VmRow) -> str:
    """Its name in a command that people copy."""
    return shlex.quote(row.vm)


def _failed_run(report: ReportInput, run: RunRow) -> Iterator[Concern]:
    if run.state not in ("failed", "lost"):
        return
    if run.retry_at is not None and report.generated - run.retry_at < RETRIED_WITHIN:
        return
    row = next((row for row in report.vms if row.vm_uuid == run.vm_uuid), None)
    if row is not None and row.gone:
        return
    if run.kind == "drill" and (run.result or _is_told_by_drills(report, run)):
        return
    if is_made_good(report, run):
        return
    safe = row.rpo_state in ("met", "no-target") if row is not None else run.kind != "check"
    together = f" of {run.vm}" if row is None and run.vm else ""
    yield Concern(
        f"failure {run.job} {run.vm_uuid}".rstrip(), "failure",
        "warning" if safe else "critical", run.vm if row is not None else "",
        f"{run.job}{together} failed: {run.message or 'no reason was given'}",
        run.hint or f"drvm run {shlex.quote(run.job)}; the daemon's log says more",
        run.ended or run.started, run.vm_uuid if row is not None else "",
    )  # fmt: skip


def is_made_good(report: ReportInput, run: RunRow) -> bool:
    """Whether the machine has a younger point than the backup that failed, which another host may
    have made, or somebody by hand: then no run of this host need ever follow."""
    if run.kind != "backup" or run.ended is None:
        return False
    points = (row.last_point_created for row in report.vms if row.vm_uuid == run.vm_uuid)
    return any(at is not None and run.ended < at <= report.generated for at in points)


def _is_told_by_drills(report: ReportInput, run: RunRow) -> bool:
    """Whether the run got as far as a result, which tells more: its machine's, or one of those that
    were drilled together."""
    for drill in report.latest_first():
        if drill.started < run.started:
            return False
        if drill.vm_uuid == run.vm_uuid or (drill.group and not drill.passed):
            return True
    return False


def _overdue_job(job: JobRow) -> Iterator[Concern]:
    if job.due is None or (job.last_good is not None and job.last_good >= job.due):
        return
    behind = "the copy is behind" if job.kind == "copy" else "it is overdue"
    done = "not on record" if job.last_good is None else f"last done {job.last_good:%Y-%m-%d %H:%M}"
    yield Concern(
        f"overdue {job.job}", "failure", "warning", "",
        f"{job.job}: {behind}, {done}" + ("" if job.last_good is None else " UTC"),
        f"drvm run {shlex.quote(job.job)}; drvm status says whether the daemon runs",
        job.due,
    )  # fmt: skip


def _hosts(report: ReportInput) -> Iterator[Concern]:
    for uri, reason in report.unreachable:
        yield Concern(
            f"host {uri}", "failure", "critical", "",
            f"the host {uri} does not answer: {reason}",
            "its VMs are neither seen nor backed up; drvm doctor",
        )  # fmt: skip


def _damage(report: ReportInput) -> Iterator[Concern]:
    if report.problems:
        first, more = report.problems[0], len(report.problems) - 1
        yield Concern(
            "damage repository", "damage", "critical", "",
            f"the repository is not as it was written: {first}"
            + (f", and {more} more" if more else ""),
            "drvm check says what it costs",
        )  # fmt: skip
    standing = [check for check in report.checks if check.stands and check.damaged_packs]
    if standing:
        yield _damaged_packs(standing)


def _damaged_packs(checks: list[CheckRow]) -> Concern:
    latest = max(checks, key=lambda check: check.began)
    packs = sum(check.damaged_packs for check in checks)
    return Concern(
        "damage packs", "damage", "critical", "",
        f"{packs} damaged {'pack was' if packs == 1 else 'packs were'} found by a check"
        f" on {latest.host}",
        "drvm check --read-data says which points; what backups store anew, drvm check --repair"
        " puts back",
        min(check.began for check in checks),
    )  # fmt: skip
