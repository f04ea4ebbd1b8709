"""Drills as tools and people see them: what would be done, and what it has proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvm.cli.output import Column, Output
from drvm.core.text import printable
from drvm.core.units import format_bytes, format_round_seconds, format_seconds
from drvm.drill.group import Absent, GroupPlan
from drvm.drill.plan import DrillPlan
from drvm.report.json_report import drill_fields
from drvm.report.model import DrillResult
from drvm.wiring.drills import Plan

_SHOWN_CHARS = 300
_SHOWN_NAMES = 40


@dataclass(frozen=True, slots=True)
class Drilled:
    """``absent``: machines that were to be drilled and have no result, and why. ``report``: where
    the page is on which the drills stand; ``None`` where none could be written."""

    results: Sequence[DrillResult]
    absent: Sequence[Absent] = ()
    report: Path | None = None


def show_drills(output: Output, drilled: Drilled) -> None:
    results = drilled.results
    if output.json:
        fields = [{**drill_fields(result), "report": drilled.report} for result in results]
        output.document({"drills": fields, "not_drilled": _absent_fields(drilled.absent)})
        return
    for result in results:
        _show_result(output, result, whole=len(results) == 1)
    for result in {result.group: result for result in results if result.group}.values():
        target, met = result.rto_target_seconds, result.group_rto_met
        output.line(
            f"group {result.group}: RTO {_against(result.group_rto_seconds, target, met=met)}"
        )
    if drilled.report is not None:
        output.line(f"report: {drilled.report}")
    output.line(verdict(drilled))


def verdict(drilled: Drilled) -> str:
    """What was proven and what was not, in a line."""
    good = [result.vm for result in drilled.results if result.passed]
    bad = [
        f"{result.vm} ({'failed' if result.ran else 'not run'})"
        for result in drilled.results
        if not result.passed
    ]
    bad += [f"{one.vm} ({one.why})" for one in drilled.absent]
    if not good and not bad:
        return "nothing is due"
    words = f"proven to come up from its point: {_names(good) or 'nothing'}"
    return f"{words}; not proven: {_names(bad)}" if bad else words


def show_plans(output: Output, plans: Sequence[Plan], absent: Sequence[Absent]) -> None:
    """``absent``: as of ``Drilled``."""
    if output.json:
        fields = [_plan_fields(plan) for plan in plans]
        output.document({"plans": fields, "not_drilled": _absent_fields(absent)})
        return
    for plan in plans:
        if isinstance(plan, DrillPlan):
            _show_machine(output, plan, "")
            continue
        output.line(f"group of {len(plan.machines)} on {plan.host}, in one isolated network")
        for number, stage in enumerate(plan.stages, start=1):
            wait = f", then {format_seconds(stage.wait_s)} of waiting" if stage.wait_s else ""
            output.line(f"  stage {number}{wait}")
            for machine in stage.machines:
                _show_machine(output, machine, "    ")
    for one in absent:
        output.line(f"not drilled: {one}")
    if not plans and not absent:
        output.line("nothing is due")


def _show_result(output: Output, result: DrillResult, *, whole: bool) -> None:
    word = "passed" if result.passed else "FAILED" if result.ran else "NOT RUN"
    stage = f", stage {result.stage}" if result.group else ""
    output.line(f"{result.vm}, point {result.point}{stage}: {word}")
    columns = [
        Column("passed"),
        Column("check"),
        Column("took", right=True),
        Column("found", wraps=True),
    ]
    rows = [
        [
            "yes" if check.passed else "NO",
            check.name,
            format_seconds(check.seconds),
            printable(" | ".join(check.detail.splitlines()), _SHOWN_CHARS),
        ]
        for check in result.checks
    ]
    if rows:
        output.table(columns, rows)
    if result.failure:
        output.line(f"  {result.failure}")
    rto = _against(result.rto_seconds, result.rto_target_seconds, met=result.rto_met)
    rpo = _against(result.rpo_seconds, result.rpo_target_seconds, met=result.rpo_met)
    output.line(f"  RTO {rto}, RPO {rpo}")
    for line in result.proven if whole else ():
        output.line(f"  proven: {line}")
    for line in result.not_proven if whole else ():
        output.line(f"  not proven: {line}")


def _against(seconds: float | None, target: float | None, *, met: bool | None) -> str:
    words = "not reached" if seconds is None else format_seconds(seconds)
    if target is None:
        return words
    return f"{words} ({'target' if met else 'MISSED, target'} {format_round_seconds(target)})"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _absent_fields(absent: Sequence[Absent]) -> list[dict[str, str]]:
    return [{"vm": one.vm, "reason": one.why} for one in absent]


def _show_machine(output: Output, plan: DrillPlan, indent: str) -> None:
    point, line = plan.request.point, output.line
    where = f"in {plan.request.directory if plan.volumes is not None else plan.directory}"
    line(f"{indent}{point.vm}, point {point.id}: on {plan.host}, {where}")
    todo = "at most to write" if plan.request.method == "boot" else "to restore"
    data, memory = format_bytes(plan.data_bytes), format_bytes(plan.memory_bytes)
    line(f"{indent}  {data} {todo}, {memory} RAM")
    for check in plan.checks:
        line(f"{indent}  check: {check.name}")
    for check in plan.not_made:
        line(f"{indent}  can't be made there: {check.name}")
    for dropped in plan.dropped:
        line(f"{indent}  left out of the definition: {dropped}")


def _plan_fields(plan: Plan) -> dict[str, Any]:
    if isinstance(plan, GroupPlan):
        stages = [
            {
                "machines": [_plan_fields(machine) for machine in stage.machines],
                "wait_seconds": stage.wait_s,
            }
            for stage in plan.stages
        ]
        return {"group": plan.id, "host": plan.host, "stages": stages}
    return {
        "vm": plan.request.point.vm,
        "point": plan.request.point.id,
        "host": plan.host,
        "method": plan.request.method,
        "directory": plan.directory,
        "data_bytes": plan.data_bytes,
        "memory_bytes": plan.memory_bytes,
        "checks": [check.name for check in plan.checks],
        "checks_not_made": [check.name for check in plan.not_made],
        "left_out": plan.dropped,
    }
