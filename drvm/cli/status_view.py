"""``drvm status`` as people and tools see it: stable fields, units in names."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from typing import Any

from drvm import __version__
from drvm.core.text import printable
from drvm.core.units import format_bytes, format_seconds
from drvm.daemon.status import Status, counted
from drvm.notify.outbox import Outbox
from drvm.report.attention import Concern
from drvm.runs.model import Run

MOST_CONCERNS = 20
MOST_UPCOMING = 3


def lines(status: Status) -> Iterator[str]:
    """What is worst comes first; the first line stands for all."""
    yield f"drvm {status.verdict.upper()}: {_summary(status)}"
    for concern in status.concerns[:MOST_CONCERNS]:
        yield f"{concern.severity}: {_named(concern)}"
        yield f"  -> {printable(concern.hint, 300)}"
    left_out = len(status.concerns) - MOST_CONCERNS
    if left_out > 0:
        yield f"and {left_out} more: drvm report"
    for run in status.record.running:
        yield f"runs: {_run(run, status.now)}"
    for moment, job in status.upcoming[:MOST_UPCOMING]:
        yield f"next: {job} at {_time(moment)}"
    yield f"daemon: {_daemon(status)}"
    for name, box in (status.record.ways or {}).items():
        if box.pending:
            yield f"tells: {name} still has {len(box.pending)} to tell"


def fields(status: Status, exit_code: int) -> dict[str, Any]:
    """The fields that tools rely on; later versions add, and never rename."""
    report, looked = status.report, status.record.looked
    critical, warnings = counted(status.concerns)
    return {
        "status": status.verdict,
        "exit_code": exit_code,
        "summary": printable(_summary(status)),
        "looked": status.now,
        "drvm_version": __version__,
        "critical": critical,
        "warnings": warnings,
        "concerns": [
            {
                "key": concern.key,
                "kind": concern.kind,
                "severity": concern.severity,
                "vm": concern.vm,
                "vm_uuid": concern.vm_uuid,
                "text": concern.text,
                "hint": concern.hint,
                "since": concern.since,
            }
            for concern in status.concerns
        ],
        "repository": {
            "url": report.repository if report is not None else None,
            "reachable": report is not None,
            "problem": status.problem.message if status.problem is not None else None,
        },
        "vms": _vms(status) if report is not None else None,
        "daemon": {
            "running": status.record.alive,
            "since": looked.started if looked is not None and status.record.alive else None,
            "config_read": (looked.config_read or looked.started)
            if looked is not None and status.record.alive
            else None,
            "restart_for": looked.restart_for if looked is not None else (),
            "looked": looked.looked if looked is not None else None,
        },
        "running": [
            {
                "id": run.id,
                "job": run.job,
                "kind": run.kind,
                "vm": run.vm,
                "vm_uuid": run.vm_uuid,
                "host": run.host,
                "started": run.started,
                "attempt": run.attempt,
                "stage": run.stage,
                "done_bytes": run.done_bytes,
                "total_bytes": run.total_bytes,
            }
            for run in status.record.running
        ],
        "next": [{"job": job, "at": moment} for moment, job in status.upcoming],
        "notify": [_way(name, box) for name, box in (status.record.ways or {}).items()],
    }


def _summary(status: Status) -> str:
    critical, warnings = counted(status.concerns)
    parts = []
    if status.concerns:
        parts.append(_named(status.concerns[0]))
        more = [f"{critical} critical"] * bool(critical)
        more += [f"{warnings} {'warning' if warnings == 1 else 'warnings'}"] * bool(warnings)
        parts.append(", ".join(more))
    if status.report is not None:
        vms = _vms(status)
        aimed = vms["rpo_met"] + vms["rpo_missed"]
        parts.append(f"{vms['protected']} of {vms['total']} VMs are protected")
        parts += [f"{vms['rpo_met']} of {aimed} meet their RPO"] * bool(aimed)
    return "; ".join(parts)


def _vms(status: Status) -> dict[str, int]:
    """``rpo_missed``: those with a target that nobody can say is met."""
    assert status.report is not None
    machines = [row for row in status.report.vms if row.machine]
    here = [row for row in machines if not row.gone]
    aimed = Counter(row.rpo_state == "met" for row in here if row.rpo_target_seconds is not None)
    return {
        "total": len(here),
        "protected": sum(row.policy is not None for row in here),
        "rpo_met": aimed[True],
        "rpo_missed": aimed[False],
        "gone": len(machines) - len(here),
    }


def _way(name: str, box: Outbox) -> dict[str, Any]:
    return {
        "name": name,
        "pending": len(box.pending),
        "told": box.told,
        "failed": box.failed,
        "lost": box.lost,
        "last_told": box.last_told,
        "failure": box.failure or None,
        "failing_since": box.failing_since,
    }


def _run(run: Run, now: dt.datetime) -> str:
    name = f"{run.job}: {run.vm}" if run.vm else run.job
    where = [run.stage] if run.stage else []
    if run.total_bytes:
        percent = min(100, 100 * run.done_bytes // run.total_bytes)
        where.append(f"{percent} % of {format_bytes(run.total_bytes)}")
    elif run.done_bytes:
        where.append(format_bytes(run.done_bytes))
    where.append(f"for {format_seconds(max(0.0, (now - run.started).total_seconds()))}")
    return f"{name}: {', '.join(where)}"


def _daemon(status: Status) -> str:
    looked = status.record.looked
    if looked is None:
        return "nobody can tell" if status.record.problem else "none has run here"
    if not status.record.alive:
        return f"none runs here; the last one looked at {_time(looked.looked)}"
    read = looked.config_read
    since = "" if read is None else f", with the config as it was read at {_time(read)}"
    return f"runs since {_time(looked.started)}{since}, looked at {_time(looked.looked)}"


def _named(concern: Concern) -> str:
    text = f"{concern.vm}: {concern.text}" if concern.vm else concern.text
    return printable(text, 300)


def _time(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
