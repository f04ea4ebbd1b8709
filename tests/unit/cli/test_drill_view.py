"""What ``drvm drill`` prints: for tools stable fields, for people a verdict as the last line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from drvm.cli.drill_view import Drilled, show_drills, show_plans
from drvm.cli.output import Flags, Output
from drvm.drill.group import Absent
from drvm.report.model import CheckResult
from tests.unit.report.results import make_drill

REPORT = Path("/srv/report.html")


def written(*, json_wanted: bool) -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    return Output(stream, Flags(json=json_wanted), colour=False), stream


def test_a_drill_has_the_fields_that_tools_rely_on() -> None:
    output, stream = written(json_wanted=True)
    show_drills(output, Drilled([make_drill(screenshot_png=b"x")], report=REPORT))
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
    show_drills(output, Drilled([drill], report=REPORT))
    assert "RTO 3 min 32 s (target 5 min), RPO" in stream.getvalue()
    assert "group g1: RTO 5 min 18 s (MISSED, target 5 min)" in stream.getvalue()
    output, stream = written(json_wanted=True)
    show_drills(output, Drilled([drill, make_drill(rto_target_seconds=None)], report=REPORT))
    one, other = json.loads(stream.getvalue())["drills"]
    assert (one["rto_met"], one["group_rto_met"]) == (True, False)
    assert (other["rto_met"], other["group_rto_met"]) == (None, None)


def test_a_drill_is_told_with_its_verdict_its_checks_and_its_times() -> None:
    output, stream = written(json_wanted=False)
    show_drills(output, Drilled([make_drill()], report=REPORT))
    assert stream.getvalue().splitlines() == [
        "web1, point 9f86d081884c7d65: passed",
        "PASSED  CHECK   TOOK  FOUND",
        "yes     agent  4.1 s  answered",
        "  RTO 3 min 32 s (target 15 min), RPO 3 h 00 min (target 24 h)",
        *(f"  proven: {line}" for line in make_drill().proven),
        *(f"  not proven: {line}" for line in make_drill().not_proven),
        "report: /srv/report.html",
        "proven to come up from its point: web1",
    ]


@pytest.mark.parametrize("detail", ["no answer\x1b[2J within 5 s", "no answer" * 1000])
def test_a_failed_check_says_what_it_found_safely_and_shortly(detail: str) -> None:
    output, stream = written(json_wanted=False)
    check = CheckResult(name="agent", passed=False, seconds=5.0, detail=detail)
    show_drills(
        output,
        Drilled([make_drill(passed=False, rto_seconds=None, checks=(check,))], report=REPORT),
    )
    told = stream.getvalue()
    assert "FAILED" in told and "no answer" in told and "RTO not reached" in told
    assert "\x1b" not in told and len(told) < 1000


def test_a_drill_that_never_came_to_its_checks_says_why() -> None:
    output, stream = written(json_wanted=False)
    drill = make_drill(passed=False, rto_seconds=None, checks=(), failure="pack 12 is damaged")
    show_drills(output, Drilled([drill], report=REPORT))
    assert "pack 12 is damaged" in stream.getvalue() and "CHECK" not in stream.getvalue()


def test_the_last_line_says_what_was_proven_and_what_was_not() -> None:
    output, stream = written(json_wanted=False)
    results = [
        make_drill(),
        make_drill(vm="web2", passed=False),
        make_drill(vm="web3", passed=False, ran=False),
    ]
    show_drills(output, Drilled(results, [Absent("web4", "it has no good point")], REPORT))
    assert stream.getvalue().splitlines()[-1] == (
        "proven to come up from its point: web1; not proven: web2 (failed), web3 (not run), "
        "web4 (it has no good point)"
    )


def test_where_nothing_was_proven_the_last_line_says_so() -> None:
    output, stream = written(json_wanted=False)
    show_drills(output, Drilled([make_drill(passed=False)]))
    assert stream.getvalue().splitlines()[-1] == (
        "proven to come up from its point: nothing; not proven: web1 (failed)"
    )
    assert "report:" not in stream.getvalue()


def test_where_nothing_was_due_no_report_is_named() -> None:
    output, stream = written(json_wanted=False)
    show_drills(output, Drilled([]))
    show_plans(output, [], [])
    assert stream.getvalue() == "nothing is due\nnothing is due\n"


def test_tools_are_told_which_machines_have_no_drill() -> None:
    absent = [Absent("web4", "it has no good point")]
    for show in (
        lambda output: show_drills(output, Drilled([], absent)),
        lambda output: show_plans(output, [], absent),
    ):
        output, stream = written(json_wanted=True)
        show(output)
        told = json.loads(stream.getvalue())["not_drilled"]
        assert told == [{"vm": "web4", "reason": "it has no good point"}]
