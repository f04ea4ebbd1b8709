"""``drvm drill [POINT...]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import check_place, chosen_point, good_points, opened, tell_foreign
from drvm.cli.views import show_drills
from drvm.config.fields import host_uri_problem
from drvm.config.policies import PolicyConfig
from drvm.core.errors import (
    DrillFailed,
    DrvmError,
    HostError,
    ObjectDamaged,
    ObjectMissing,
    PreflightFailed,
    RepositoryError,
    RestoreError,
    UsageError,
)
from drvm.core.files import publish
from drvm.core.text import printable
from drvm.core.units import format_bytes, format_seconds
from drvm.drill.group import GroupPlan
from drvm.drill.plan import DrillPlan
from drvm.report.html import html_report
from drvm.repository.points import Point
from drvm.wiring.assembly import Wiring
from drvm.wiring.drills import (
    Carried,
    DrillWish,
    Plan,
    carry_out_all,
    owed,
    plan_drill_of,
    plan_policy,
    points_by_policy,
)
from drvm.wiring.reporting import gather_report, latest_runs

_MOST_AT_ONCE = 64
_OF_ONE = (RestoreError, HostError, RepositoryError, ObjectMissing, ObjectDamaged, UsageError)
"""What keeps one machine from being drilled, and hardly all of them: also a point of image files
alone, which is no machine."""


@click.command("drill")
@click.argument("points", nargs=-1, metavar="POINT...")
@click.option("--policy", metavar="NAME", help="All VMs of this policy: as a group, or each.")
@click.option("--due", is_flag=True, help="What the policies' schedules of drills owe.")
@click.option(
    "--method",
    type=click.Choice(["restore", "boot"]),
    help="restore: write the disks first; boot: run over the repository.",
)
@click.option("--to", "host_uri", metavar="URI", help="The libvirt host to drill on.")
@click.option(
    "--parallel",
    metavar="N",
    type=click.IntRange(1, _MOST_AT_ONCE),
    default=1,
    help="So many at once, as far as there is room.",
)
@click.option(
    "--virt-type",
    type=click.Choice(["kvm", "qemu"]),
    help="qemu: emulated, where there is no KVM.",
)
@click.option(
    "--report",
    "report_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the page of HTML goes.  [default: below state_dir]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; touch nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    points: tuple[str, ...],
    policy: str | None,
    due: bool,
    method: Literal["restore", "boot"] | None,
    host_uri: str | None,
    parallel: int,
    virt_type: Literal["kvm", "qemu"] | None,
    report_path: Path | None,
    dry_run: bool,
) -> None:
    """Prove that a point boots: restore it in isolation, boot it, check it, measure it.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. The machine
    runs in a network of its own without any way out, the original is never touched, and all of it
    is removed afterwards. The checks are those of the VM's policy. Machines of a policy with
    stages are drilled together, stage by stage. The result is kept in the repository. Ends with 4
    where a drill failed.

    \b
    Examples:
      drvm drill web1
      drvm drill web1 --method boot
      drvm drill --policy nightly --json | jq '.drills[] | {vm, passed, rto_seconds}'
      drvm drill --due --parallel 2
    """
    if report_path is not None:
        check_place(report_path.absolute())
    if host_uri is not None and (problem := host_uri_problem(host_uri)):
        raise UsageError(f"--to {problem}")
    wish = DrillWish(method, host_uri, virt_type)
    with opened(invocation) as wiring:
        plans, refused = _plans(invocation, wiring, points, policy, wish, due=due)
        if dry_run:
            if plans or not refused:
                _show_plans(invocation, plans)
            _end(invocation, [], refused)
            return
        if not plans and not refused:
            _show(invocation, [], wiring.report_path("none"))
            return
        with invocation.progress() as progress:
            done = carry_out_all(wiring, plans, progress, invocation.trace, parallel=parallel)
        results = [result for one in done for result in one.results]
        if results:
            report = (report_path or wiring.report_path(results[-1].id)).absolute()
            _write_report(wiring, report)
            _show(invocation, done, report)
    _end(invocation, done, refused)


def _plans(
    invocation: Invocation,
    wiring: Wiring,
    points: tuple[str, ...],
    policy: str | None,
    wish: DrillWish,
    *,
    due: bool,
) -> tuple[list[Plan], list[DrvmError]]:
    """Those that are named, each by itself; then those of the policy; or what is owed. And why
    machines of policies can't be drilled, which keeps the others waiting no longer."""
    if due and (points or policy):
        raise UsageError("--due says by itself what is to be drilled")
    if not (due or policy or points):
        raise UsageError(
            "which points?", hint="drvm drill VM..., --policy NAME, or --due; drvm points"
        )
    named = [chosen_point(invocation, wiring, text) for text in points]
    plans: list[Plan] = [
        plan_drill_of(wiring, point.manifest, wish)
        for point in {point.id: point for point in named}.values()
    ]
    if policy is None and not due:
        return plans, []
    good = good_points(invocation, wiring.repository())
    if due:
        wanted = [(one.policy, one.points) for one in owed(wiring, good)]
    else:
        chosen = wiring.settings.policy_named(policy or "")
        mine = points_by_policy(wiring, good).get(chosen.name, ())
        if not mine:
            raise UsageError(
                f"policy {policy!r} covers no VM that has points",
                hint="drvm vms shows the policy of each VM",
            )
        for point in {point.manifest.vm_uuid: point for point in mine}.values():
            tell_foreign(invocation, wiring, point)
        wanted = [(chosen, mine)]
    refused: list[DrvmError] = []
    for one, its in wanted:
        for some in _apart(one, its):
            try:
                plans += plan_policy(wiring, one, some, wish)
            except _OF_ONE as error:
                refused.append(error)
    return plans, refused


def _apart(policy: PolicyConfig, points: Sequence[Point]) -> list[Sequence[Point]]:
    """What can be drilled without the rest."""
    if policy.drill is not None and policy.drill.stages:
        return [points]
    machines: dict[str, list[Point]] = {}
    for point in points:
        machines.setdefault(point.manifest.vm_uuid, []).append(point)
    return [*machines.values()]


def _write_report(wiring: Wiring, path: Path) -> None:
    report = gather_report(wiring, latest_runs(wiring), pictures=True)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    publish(path, html_report(report).encode())


def _show(invocation: Invocation, done: list[Carried], report: Path) -> None:
    results = [result for one in done for result in one.results]
    for result in results:
        for warning in result.warnings:
            invocation.warn(f"{result.vm}: {warning}")
    show_drills(invocation.output, results, report)


def _end(invocation: Invocation, done: list[Carried], refused: list[DrvmError]) -> None:
    """Raises ``DrillFailed``, or the first error of a drill that has no result."""
    results = [result for one in done for result in one.results]
    failed = [result.vm for result in results if not result.passed]
    errors = refused + [one.error for one in done if one.error is not None]
    for error in errors if failed else errors[1:]:
        problems = error.problems if isinstance(error, PreflightFailed) else ()
        words = ": ".join(filter(None, (error.message, "; ".join(problems), error.hint)))
        invocation.stderr.write(f"drvm: error: {printable(words, 1000)}\n")
    if failed:
        raise DrillFailed(
            f"{len(failed)} of {len(results)} drills failed: {', '.join(failed)}",
            hint="the report shows why",
        )
    if errors:
        raise errors[0]


def _show_plans(invocation: Invocation, plans: list[Plan]) -> None:
    if invocation.output.json:
        invocation.output.document({"plans": [_plan_fields(plan) for plan in plans]})
        return
    line = invocation.output.line
    for plan in plans:
        if isinstance(plan, DrillPlan):
            _show_machine(invocation, plan, "")
            continue
        line(f"group of {len(plan.machines)} on {plan.host}, in one isolated network")
        for number, stage in enumerate(plan.stages, start=1):
            wait = f", then {format_seconds(stage.wait_s)} of waiting" if stage.wait_s else ""
            line(f"  stage {number}{wait}")
            for machine in stage.machines:
                _show_machine(invocation, machine, "    ")
    if not plans:
        line("nothing is due")


def _show_machine(invocation: Invocation, plan: DrillPlan, indent: str) -> None:
    point, line = plan.request.point, invocation.output.line
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
