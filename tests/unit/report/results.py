"""Drill results as the tests of this room need them."""

import datetime as dt
from typing import Any

from drvm.report.input import ReportInput, VmRow
from drvm.report.model import CheckResult, DrillResult

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)
PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


def make_drill(**changes: Any) -> DrillResult:
    fields: dict[str, Any] = {
        "id": "00000000000000d1",
        "vm": "web1",
        "vm_uuid": "uuid-web1",
        "point": "9f86d081884c7d65",
        "point_created": NOW - dt.timedelta(hours=3),
        "consistency": "filesystem",
        "started": NOW,
        "finished": NOW + dt.timedelta(minutes=4),
        "passed": True,
        "rto_seconds": 212.4,
        "rto_target_seconds": 900.0,
        "rpo_seconds": 10800.0,
        "rpo_target_seconds": 86400.0,
        "phases": {"plan": 0.4, "data": 131.0, "define": 1.2, "boot": 74.1, "checks": 5.7},
        "checks": (CheckResult(name="agent", passed=True, seconds=4.1, detail="answered"),),
        "not_proven": ("that it reaches other machines",),
        "host": "kvm1",
        "drvm_version": "0.1.0",
        "data_bytes": 12345,
    }
    return DrillResult(**(fields | changes))


def make_row(**changes: Any) -> VmRow:
    fields: dict[str, Any] = {
        "vm": "web1",
        "vm_uuid": "uuid-web1",
        "host": "kvm1",
        "policy": "nightly",
        "last_point": "9f86d081884c7d65",
        "last_point_created": NOW - dt.timedelta(hours=3),
        "consistency": "filesystem",
        "rpo_state": "met",
        "rpo_age_seconds": 10800.0,
        "rpo_target_seconds": 86400.0,
    }
    return VmRow(**(fields | changes))


def make_report(
    *drills: DrillResult, vms: tuple[VmRow, ...] | None = None, **more: Any
) -> ReportInput:
    return ReportInput(
        generated=NOW,
        repository="s3://drvm/main",
        vms=(make_row(),) if vms is None else vms,
        drills=drills,
        drvm_version="0.1.0",
        **more,
    )
