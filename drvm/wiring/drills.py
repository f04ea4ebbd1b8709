"""Drills, as the command line and the daemon begin them."""

from __future__ import annotations

from drvm.config.drills import DrillConfig
from drvm.config.section import matches
from drvm.core.progress import Progress, Trace, no_trace
from drvm.drill.checks.base import Check
from drvm.drill.checks.registry import make_check
from drvm.drill.leftovers import Leftovers, find_leftovers
from drvm.drill.plan import DrillPlan, DrillRequest, plan_drill
from drvm.drill.run import run_drill
from drvm.host.model import Host
from drvm.report.model import DrillResult, encode_drill
from drvm.repository.manifest import Manifest
from drvm.repository.select import select
from drvm.restore.machine.definition import VirtType
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import policy_of_point


def drill_checks(config: DrillConfig, vm: str) -> tuple[Check, ...]:
    """Those that are for this machine, in their order; without any, that its agent answers."""
    made = []
    for check in config.checks:
        if not matches(vm, check.vms):
            continue
        (kind,) = (name for name in check.kinds() if getattr(check, name) is not None)
        model = getattr(check, kind)
        # not model_dump: that writes durations as people do
        fields = {name: getattr(model, name) for name in type(model).model_fields}
        made.append(make_check(kind, fields))
    return tuple(made) or (make_check("agent", {}),)


def plan_drill_of(wiring: Wiring, point: Manifest, virt_type: VirtType | None = None) -> DrillPlan:
    """As the policy of the VM says; without one, the drill proves that the guest's agent answers.
    Raises ``PreflightFailed``."""
    policy = policy_of_point(wiring, point)
    drill = (policy.drill if policy is not None else None) or DrillConfig()
    request = DrillRequest(
        point=point,
        checks=drill_checks(drill, point.vm),
        boot_timeout_s=drill.boot_timeout_s,
        rto_target_s=drill.rto_s,
        rpo_target_s=policy.rpo_s if policy is not None else None,
        directory=wiring.drill_directory(policy),
        virt_type=virt_type,
    )
    return plan_drill(wiring.repository(), wiring.host(), request, wiring.clock)


def carry_out_drill(
    wiring: Wiring, plan: DrillPlan, progress: Progress, trace: Trace = no_trace
) -> DrillResult:
    """Drill, and keep the result in the repository, passed or not."""
    result = run_drill(plan, wiring.host(), wiring.restorer(), wiring.clock, progress, trace)
    wiring.repository().drills.put(result.vm_uuid, result.id, encode_drill(result))
    return result


def drill_latest(wiring: Wiring, vm: str, progress: Progress) -> DrillResult:
    """Drill the latest good point of a VM. Raises ``UnknownPoint`` where there is none."""
    point = select(wiring.repository().points().points, vm)
    return carry_out_drill(wiring, plan_drill_of(wiring, point.manifest), progress)


def find_drill_leftovers(wiring: Wiring, host: Host) -> Leftovers:
    return find_leftovers(host, *wiring.drill_directories())
