"""The report as one JSON document: stable field names, units in names, no pictures."""

from __future__ import annotations

from typing import Any

import msgspec

from drvm.report.attention import attention
from drvm.report.input import ReportInput
from drvm.report.model import DrillResult


def drill_fields(drill: DrillResult) -> dict[str, Any]:
    """What ``drvm drill --json`` prints for each drill (the caller adds ``report``)."""
    fields: dict[str, Any] = msgspec.to_builtins(drill)
    del fields["screenshot_png"], fields["format"]
    for name in ("rto_met", "rpo_met", "group_rto_met"):  # null: no target
        fields[name] = getattr(drill, name)
    return fields


def report_fields(report: ReportInput) -> dict[str, Any]:
    return {
        "generated": msgspec.to_builtins(report.generated),
        "repository": report.repository,
        "drvm_version": report.drvm_version,
        "host": report.host,
        "attention": [msgspec.to_builtins(concern) for concern in attention(report)],
        "vms": [msgspec.to_builtins(row) for row in report.vms],
        "drills": [drill_fields(drill) for drill in report.latest_first()],
        "runs": [msgspec.to_builtins(run) for run in report.runs],
        "jobs": [msgspec.to_builtins(job) for job in report.jobs],
        "checks": [msgspec.to_builtins(check) for check in report.checks],
        "storage": [msgspec.to_builtins(sample) for sample in report.storage],
        "problems": list(report.problems),
        "unreachable_hosts": [
            {"host": host, "reason": reason} for host, reason in report.unreachable
        ],
    }


def json_report(report: ReportInput) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report_fields(report), order="sorted"), indent=2)
