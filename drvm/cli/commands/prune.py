"""``drvm prune [VM...]``."""

from __future__ import annotations

from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.clock import rfc3339
from drvm.upkeep.prune import Pruned, PrunePlan, run_prune
from drvm.upkeep.retention import Decision
from drvm.wiring.upkeep import plan_prune_of


@click.command("prune")
@click.argument("vms", nargs=-1, metavar="[VM]...")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and why; remove nothing.")
@click.pass_obj
def command(invocation: Invocation, vms: tuple[str, ...], dry_run: bool) -> None:
    """Remove the points that the rules of the policies no longer keep, of VMs or of all.

    The rules are the keep_* keys of the policy that names the VM; without any, all its points stay.
    So do pinned points, the last good one, and what is in doubt: points that are not whole or that
    are dated in the future, which push no others out either. Removed points can't be restored any
    more. Their data stays in the repository until it is collected.

    \b
    Examples:
      drvm prune --dry-run
      drvm prune web1 --json | jq -r '.points[] | select(.kept | not) | .id'
    """
    with opened(invocation) as wiring:
        plan = plan_prune_of(wiring, vms, write=not dry_run)
        for problem in plan.problems:
            invocation.warn(problem)
        pruned = Pruned((), ())
        try:
            if not dry_run:
                pruned = run_prune(wiring.repository(), plan.going, invocation.trace)
        finally:
            _show(invocation, plan, pruned, dry_run=dry_run)
    for vm in sorted({decision.point.vm for decision in plan.decisions if decision.doubt}):
        invocation.warn(f"{vm}: nobody can tell which policy it has, so its points stay")
    for point in pruned.spared:
        invocation.warn(f"point {point.id} was pinned meanwhile: it stays")
    if plan.refusal is not None:
        raise plan.refusal


def _show(invocation: Invocation, plan: PrunePlan, pruned: Pruned, *, dry_run: bool) -> None:
    output = invocation.output
    if output.json:
        ended = {point.id for point in pruned.ended}
        fields = [{**_fields(d), "removed": d.point.id in ended} for d in plan.decisions]
        output.document({"dry_run": dry_run, "points": fields})
        return
    if not plan.decisions:
        output.line("no points yet: drvm backup VM takes one")
        return
    columns = [
        Column(""),
        Column("point"),
        Column("vm"),
        Column("created (UTC)"),
        Column("host"),
        Column("why", wraps=True),
    ]
    rows = [
        [
            "keep" if decision.kept else "remove",
            decision.point.id,
            decision.point.vm,
            short_time(rfc3339(decision.point.created)),
            decision.point.host,
            "; ".join(decision.reasons),
        ]
        for decision in plan.decisions
    ]
    output.table(columns, rows)
    count = len(plan.going) if dry_run else len(pruned.ended)
    word = "would be removed" if dry_run else "removed"
    output.line(f"{count} of {len(plan.decisions)} points {word}")


def _fields(decision: Decision) -> dict[str, Any]:
    point = decision.point
    return {
        "id": point.id,
        "vm": point.vm,
        "vm_uuid": point.vm_uuid,
        "host": point.host,
        "created": rfc3339(point.created),
        "kept": decision.kept,
        "reasons": decision.reasons,
    }
