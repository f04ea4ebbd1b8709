"""``drvm vms``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import good_points, opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.units import format_bytes, format_seconds
from drvm.wiring.fleet import Fleet, FleetVm, fleet_of
from drvm.wiring.jobs import standing
from drvm.wiring.whereabouts import HINT

_SHOWN = 20


@click.command("vms")
@click.pass_obj
def command(invocation: Invocation) -> int:
    """List the VMs of the hosts: how each is protected, and what would be lost now.

    VMs that are gone from the hosts but still have points are listed too; where a host does not
    answer, they are "unreachable", and drvm ends with 3. What another host has under the UUID of
    such a VM, and off, is not taken for it: a move may have left it behind. Of a VM that runs on a
    standing overlay between backups, the state says how much is in it. The policy is "none" where
    no policy protects the VM, and "?" where nobody can tell. The engine is what would capture the
    VM now, and why.

    \b
    Examples:
      drvm vms
      drvm vms --json | jq -r '.vms[] | select(.policy == null) | .vm'
    """
    with opened(invocation) as wiring:
        points = good_points(invocation, wiring.repository())
        fleet = fleet_of(wiring, points, engines=True)
        away = {uri for uri, _ in fleet.away}
        here = [host for host in wiring.hosts() if host.uri not in away]
        stood = {vm.vm_uuid: vm.allocated_bytes for vm in standing(wiring, here)}
    _warn(invocation, fleet)
    code = DONE_WITH_WARNINGS if fleet.away else DONE
    if invocation.output.json:
        rows_of_fields = [_fields(vm, stood.get(vm.uuid)) for vm in fleet.vms]
        hosts = [{"host": uri, "message": error.message} for uri, error in fleet.away]
        invocation.output.document({"vms": rows_of_fields, "unreachable": hosts})
        return code
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
            vm.policy or ("?" if vm.doubt else "none"),
            str(vm.points),
            short_time(vm.last.manifest.created) if vm.last is not None else "never",
            "" if vm.rpo.age_seconds is None else format_seconds(vm.rpo.age_seconds),
            vm.rpo.state.value,
            f"{vm.engine.engine}: {vm.engine.reason}" if vm.engine is not None else "",
        ]
        for vm in fleet.vms
    ]
    invocation.output.table(columns, rows)
    _tell_unprotected(invocation, fleet.vms)
    return code


def _warn(invocation: Invocation, fleet: Fleet) -> None:
    for _, error in fleet.away:
        invocation.warn(f"{error.message} ({error.hint})" if error.hint else error.message)
    for vm in fleet.vms:
        if vm.doubt:
            invocation.warn(f"{vm.name}: {vm.doubt}")
        if vm.held:
            invocation.warn(f"{vm.name} is not backed up: {vm.held} ({HINT})")


def _tell_unprotected(invocation: Invocation, vms: Sequence[FleetVm]) -> None:
    """Those that a host has and no policy covers."""
    names = [vm.name for vm in vms if vm.host is not None and not vm.policy and not vm.doubt]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        invocation.output.line(f"no policy protects {', '.join(names[:_SHOWN])}{more}")


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
        "policy_doubt": vm.doubt or None,
        "held": vm.held or None,
        "engine": vm.engine.engine if vm.engine is not None else None,
        "engine_reason": vm.engine.reason if vm.engine is not None else None,
        "points": vm.points,
        "last_point": last.id if last is not None else None,
        "last_created": last.created if last is not None else None,
        "rpo_state": vm.rpo.state.value,
        "rpo_age_seconds": vm.rpo.age_seconds,
        "rpo_target_seconds": vm.rpo.target_seconds,
    }
