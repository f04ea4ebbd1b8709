"""``drvm vms``."""

from __future__ import annotations

from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import good_points, opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.units import format_seconds
from drvm.wiring.fleet import FleetVm, survey


@click.command("vms")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """List the VMs of the hosts: how each is protected, and what would be lost now.

    VMs that are gone from the hosts but still have points are listed too.

    \b
    Examples:
      drvm vms
      drvm vms --json | jq -r '.vms[] | select(.policy == null) | .vm'
    """
    with opened(invocation) as wiring:
        points = good_points(invocation, wiring.repository())
        fleet = survey(wiring.hosts(), points, wiring.settings.policies, invocation.clock.now())
    if invocation.output.json:
        invocation.output.document({"vms": [_fields(vm) for vm in fleet]})
        return
    columns = [
        Column("vm"),
        Column("state"),
        Column("host"),
        Column("policy"),
        Column("points", right=True),
        Column("last good (UTC)"),
        Column("would lose", right=True),
        Column("rpo"),
    ]
    rows = [
        [
            vm.name,
            vm.state or "gone",
            vm.host or "",
            vm.policy or "none",
            str(vm.points),
            short_time(vm.last.manifest.created) if vm.last is not None else "never",
            "" if vm.rpo.age_seconds is None else format_seconds(vm.rpo.age_seconds),
            vm.rpo.state.value,
        ]
        for vm in fleet
    ]
    invocation.output.table(columns, rows)


def _fields(vm: FleetVm) -> dict[str, Any]:
    last = vm.last.manifest if vm.last is not None else None
    return {
        "vm": vm.name,
        "vm_uuid": vm.uuid,
        "host": vm.host,
        "state": vm.state,
        "policy": vm.policy,
        "points": vm.points,
        "last_point": last.id if last is not None else None,
        "last_created": last.created if last is not None else None,
        "rpo_state": vm.rpo.state.value,
        "rpo_age_seconds": vm.rpo.age_seconds,
        "rpo_target_seconds": vm.rpo.target_seconds,
    }
