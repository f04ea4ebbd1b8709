"""The report as one JSON document: stable field names, units in names, no pictures."""

from __future__ import annotations

from typing import Any

import msgspec

from drvm.report.model import DrillResult, ReportInput


def drill_fields(drill: DrillResult) -> dict[str, Any]:
    """What ``drvm drill --json`` prints for each drill (the caller adds ``report``)."""
    fields: dict[str, Any] = msgspec.to_builtins(drill)
    del fields["screenshot_png"], fields["format"]
    return fields


def report_fields(report: ReportInput) -> dict[str, Any]:
    return {
        "generated": msgspec.to_builtins(report.generated),
        "repository": report.repository,
        "drvm_version": report.drvm_version,
        "vms": [msgspec.to_builtins(row) for row in report.vms],
        "drills": [drill_fields(drill) for drill in report.latest_first()],
    }


def json_report(report: ReportInput) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report_fields(report), order="sorted"), indent=2)
