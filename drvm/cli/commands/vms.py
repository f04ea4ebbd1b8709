"""``drvm vms``."""

from __future__ import annotations

from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import good_points, opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.units import format_bytes, format_seconds
from drvm.wiring.fleet import FleetVm, survey
from drvm.wiring.jobs import standing


@click.command("vms")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """List the VMs of the hosts: how each is protected, and what would be lost now.

    VMs that are gone from the hosts but still have points are listed too. Of a VM that runs on a
    standing overlay between backups, the state says how much is in it. The engine is what would
    capture the VM now, and why.

    \b
    Examples:
      drvm vms
      drvm vms --json | jq -r '.vms[] | select(.policy == null) | .vm'
    """
    with opened(invocation) as wiring:
        points = good_points(invocation, wiring.repository())
        stood = {vm.vm_uuid: vm.allocated_bytes for vm in standing(wiring)}
        fleet = survey(wiring.hosts(), points, wiring.settings.policy_of, invocation.clock.now())
    if invocation.output.json:
        invocation.output.document({"vms": [_fields(vm, stood.get(vm.uuid)) for vm in fleet]})
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
        Column("engine", wraps=True),
    ]
    rows = [
        [
            vm.name,
            _state(vm, stood.get(vm.uuid)),
            vm.host or "",
            vm.policy or "none",
            str(vm.points),
            short_time(vm.last.manifest.created) if vm.last is not None else "never",
            "" if vm.rpo.age_seconds is None else format_seconds(vm.rpo.age_seconds),
            vm.rpo.state.value,
            f"{vm.engine.engine}: {vm.engine.reason}" if vm.engine is not None else "",
        ]
        for vm in fleet
    ]
    invocation.output.table(columns, rows)


def _state(vm: FleetVm, standing_bytes: int | None) -> str:
    state = vm.state or "gone"
    return state if standing_bytes is None else f"{state} +{format_bytes(standing_bytes)} overlay"


def _fields(vm: FleetVm, standing_bytes: int | None) -> dict[str, Any]:
    last = vm.last.manifest if vm.last is not None else None
    return {
        "vm": vm.name,
        "vm_uuid": vm.uuid,
        "host": vm.host,
        "state": vm.state,
        "standing_overlay_bytes": standing_bytes,
        "policy": vm.policy,
        "engine": vm.engine.engine if vm.engine is not None else None,
        "engine_reason": vm.engine.reason if vm.engine is not None else None,
        "points": vm.points,
        "last_point": last.id if last is not None else None,
        "last_created": last.created if last is not None else None,
        "rpo_state": vm.rpo.state.value,
        "rpo_age_seconds": vm.rpo.age_seconds,
        "rpo_target_seconds": vm.rpo.target_seconds,
    }
