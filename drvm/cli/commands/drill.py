"""``drvm drill [POINT...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import check_place, chosen_point, good_points, opened, tell_foreign
from drvm.cli.views import show_drills
from drvm.core.errors import DrillFailed, UsageError
from drvm.core.units import format_bytes
from drvm.drill.plan import DrillPlan
from drvm.report.html import html_report
from drvm.repository.manifest import Manifest
from drvm.wiring.assembly import Wiring
from drvm.wiring.drills import carry_out_drill, plan_drill_of
from drvm.wiring.fleet import fleet_of
from drvm.wiring.reporting import gather_report


@click.command("drill")
@click.argument("points", nargs=-1, metavar="POINT...")
@click.option("--policy", metavar="NAME", help="The latest points of all VMs of this policy.")
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
    virt_type: Literal["kvm", "qemu"] | None,
    report_path: Path | None,
    dry_run: bool,
) -> None:
    """Prove that a point boots: restore it in isolation, boot it, check it, measure it.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. The machine
    runs in a network of its own without any way out, the original is never touched, and all of it
    is removed afterwards. The checks are those of the VM's policy. The result is kept in the
    repository. Ends with 4 where a drill failed.

    \b
    Examples:
      drvm drill web1
      drvm drill --policy nightly --json | jq '.drills[] | {vm, passed, rto_seconds}'
    """
    if report_path is not None:
        check_place(report_path.absolute())
    with opened(invocation) as wiring:
        plans = [
            plan_drill_of(wiring, manifest, virt_type)
            for manifest in _chosen(invocation, wiring, points, policy)
        ]
        if dry_run:
            _show_plans(invocation, plans)
            return
        results = []
        with invocation.progress() as progress:
            for plan in plans:
                results.append(carry_out_drill(wiring, plan, progress, invocation.trace))
        report = (report_path or wiring.report_path(results[-1].id)).absolute()
        _write_report(wiring, report)
    for result in results:
        for warning in result.warnings:
            invocation.warn(f"{result.vm}: {warning}")
    show_drills(invocation.output, results, report)
    failed = [result.vm for result in results if not result.passed]
    if failed:
        raise DrillFailed(
            f"{len(failed)} of {len(results)} drills failed: {', '.join(failed)}",
            hint=f"the report shows why: {report}",
        )


def _chosen(
    invocation: Invocation, wiring: Wiring, points: tuple[str, ...], policy: str | None
) -> list[Manifest]:
    """Those that are named, then those of the policy; each once."""
    if policy is None and not points:
        raise UsageError("which points?", hint="drvm drill VM..., or --policy NAME; drvm points")
    manifests = [chosen_point(invocation, wiring, text).manifest for text in points]
    if policy is not None:
        chosen = wiring.settings.policy_named(policy)
        good = good_points(invocation, wiring.repository())
        fleet = fleet_of(wiring, good).vms
        latest = [vm.last for vm in fleet if vm.policy == chosen.name and vm.last is not None]
        if not latest:
            raise UsageError(
                f"policy {policy!r} covers no VM that has points",
                hint="drvm vms shows the policy of each VM",
            )
        for point in latest:
            tell_foreign(invocation, wiring, point)
            manifests.append(point.manifest)
    return list({manifest.id: manifest for manifest in manifests}.values())


def _write_report(wiring: Wiring, path: Path) -> None:
    report = gather_report(wiring)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(html_report(report), encoding="utf-8")


def _show_plans(invocation: Invocation, plans: list[DrillPlan]) -> None:
    if invocation.output.json:
        invocation.output.document({"plans": [_plan_fields(plan) for plan in plans]})
        return
    for plan in plans:
        point = plan.request.point
        line = invocation.output.line
        line(f"{point.vm}, point {point.id}: on {plan.host}, in {plan.directory}")
        line(f"  {format_bytes(plan.data_bytes)} to restore, {format_bytes(plan.memory_bytes)} RAM")
        for check in plan.request.checks:
            line(f"  check: {check.name}")
        for dropped in plan.dropped:
            line(f"  left out of the definition: {dropped}")


def _plan_fields(plan: DrillPlan) -> dict[str, Any]:
    return {
        "vm": plan.request.point.vm,
        "point": plan.request.point.id,
        "host": plan.host,
        "directory": plan.directory,
        "data_bytes": plan.data_bytes,
        "memory_bytes": plan.memory_bytes,
        "checks": [check.name for check in plan.request.checks],
        "left_out": plan.dropped,
    }
