"""Points and drills as they are printed: the fields that tools rely on, and the tables."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from drvm.cli.output import Flags, Output
from drvm.cli.views import point_fields, show_drills, show_points
from drvm.report.model import CheckResult
from drvm.repository.manifest import Disk, Manifest
from tests.unit.report.results import make_drill

POINT = Manifest(
    id="9f86d081884c7d65",
    vm="web1",
    vm_uuid="2f3c5f0a-0000-4000-8000-000000000000",
    created="2026-11-23T04:00:00.000000Z",
    finished="2026-11-23T04:01:00.000000Z",
    consistency="crash",
    engine="external",
    host="kvm1",
    drvm_version="0.1.0",
    stored_bytes=5000,
    disks=(
        Disk("vda", 10 << 30, "qcow2", "full-read", 4 << 20, 2 << 20, 1 << 20),
        Disk("vdb", 1 << 30, "raw", "full-read", 8192, 4096, 34),
    ),
    warnings=("no agent",),
)
REPORT = Path("/srv/report.html")


def written(*, json_wanted: bool) -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    return Output(stream, Flags(json=json_wanted), colour=False), stream


def test_a_point_has_the_fields_that_tools_rely_on() -> None:
    output, stream = written(json_wanted=True)
    output.document({"points": [point_fields(POINT)]})
    (point,) = json.loads(stream.getvalue())["points"]
    assert {name: point[name] for name in ("id", "vm", "created", "status", "consistency")} == {
        "id": "9f86d081884c7d65",
        "vm": "web1",
        "created": "2026-11-23T04:00:00.000000Z",
        "status": "good",
        "consistency": "crash",
    }
    assert point["warnings"] == ["no agent"]
    assert point["disks"][0] == {
        "target": "vda",
        "size_bytes": 10 << 30,
        "format": "qcow2",
        "read_bytes": 4 << 20,
        "new_bytes": 2 << 20,
        "stored_bytes": 1 << 20,
        "method": "full-read",
    }


def test_points_are_a_table_with_sums_over_the_disks() -> None:
    output, stream = written(json_wanted=False)
    show_points(output, [POINT])
    titles, row = stream.getvalue().splitlines()
    assert titles.split()[:2] == ["POINT", "VM"]
    cells = ("9f86d081884c7d65", "web1", "2026-11-23 04:00:00", "crash", "2", "11.0 GiB", "2.0 MiB")
    at = -1
    for cell in cells:
        assert row.find(cell, at + 1) > at, cell
        at = row.find(cell, at + 1)


def test_a_drill_has_the_fields_that_tools_rely_on() -> None:
    output, stream = written(json_wanted=True)
    show_drills(output, [make_drill(screenshot_png=b"x")], REPORT)
    (drill,) = json.loads(stream.getvalue())["drills"]
    wanted: dict[str, Any] = {
        "vm": "web1",
        "point": "9f86d081884c7d65",
        "passed": True,
        "rto_seconds": 212.4,
        "rpo_seconds": 10800.0,
        "checks": [{"name": "agent", "passed": True, "seconds": 4.1, "detail": "answered"}],
        "report": "/srv/report.html",
    }
    assert {name: drill[name] for name in wanted} == wanted
    assert "screenshot_png" not in drill


def test_what_missed_its_target_is_told_of_machine_and_group() -> None:
    drill = make_drill(group="g1", stage=1, group_rto_seconds=318.0, rto_target_seconds=300.0)
    output, stream = written(json_wanted=False)
    show_drills(output, [drill], REPORT)
    assert "RTO 3 min 32 s (target 5 min), RPO" in stream.getvalue()
    assert "group g1: RTO 5 min 18 s (MISSED, target 5 min)" in stream.getvalue()
    output, stream = written(json_wanted=True)
    show_drills(output, [drill, make_drill(rto_target_seconds=None)], REPORT)
    one, other = json.loads(stream.getvalue())["drills"]
    assert (one["rto_met"], one["group_rto_met"]) == (True, False)
    assert (other["rto_met"], other["group_rto_met"]) == (None, None)


def test_a_drill_is_told_with_its_verdict_its_checks_and_its_times() -> None:
    output, stream = written(json_wanted=False)
    show_drills(output, [make_drill()], REPORT)
    assert stream.getvalue().splitlines() == [
        "web1, point 9f86d081884c7d65: passed",
        "PASSED  CHECK   TOOK  FOUND",
        "yes     agent  4.1 s  answered",
        "  RTO 3 min 32 s (target 15 min), RPO 3 h 00 min (target 24 h)",
        "report: /srv/report.html",
    ]


@pytest.mark.parametrize("detail", ["no answer\x1b[2J within 5 s", "no answer" * 1000])
def test_a_failed_check_says_what_it_found_safely_and_shortly(detail: str) -> None:
    output, stream = written(json_wanted=False)
    check = CheckResult(name="agent", passed=False, seconds=5.0, detail=detail)
    show_drills(output, [make_drill(passed=False, rto_seconds=None, checks=(check,))], REPORT)
    told = stream.getvalue()
    assert "FAILED" in told and "no answer" in told and "RTO not reached" in told
    assert "\x1b" not in told and len(told) < 1000


def test_a_drill_that_never_came_to_its_checks_says_why() -> None:
    output, stream = written(json_wanted=False)
    drill = make_drill(passed=False, rto_seconds=None, checks=(), failure="pack 12 is damaged")
    show_drills(output, [drill], REPORT)
    assert "pack 12 is damaged" in stream.getvalue() and "CHECK" not in stream.getvalue()
