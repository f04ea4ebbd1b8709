"""Turning machines back where they are, after a point of what is there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drvm.core.errors import CaptureError
from drvm.core.findings import Finding
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.model import Host
from drvm.repository.manifest import Manifest
from drvm.restore.rollback.plan import RollbackPlan, plan_rollback
from drvm.restore.rollback.run import TurnedBack, make_ready, turn_back
from drvm.snapshot import domainxml
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import policy_of_vm
from drvm.wiring.jobs import BackupOptions, take_point
from drvm.wiring.keeping import kept
from drvm.wiring.upkeep import pin_point


@dataclass(frozen=True, slots=True)
class RolledBack:
    """``safety_point``: what was there before; ``None`` where nobody wanted one. ``warnings``: what
    went otherwise than wanted."""

    done: TurnedBack
    safety_point: str | None
    warnings: tuple[str, ...] = ()


def plan_in_place(wiring: Wiring, manifest: Manifest, disks: frozenset[str] | None) -> RollbackPlan:
    """See ``plan_rollback``."""
    parts = wiring.parts(wiring.local_host())
    return plan_rollback(wiring.repository(), manifest, parts, disks)


def in_place(
    wiring: Wiring,
    plan: RollbackPlan,
    progress: Progress,
    trace: Trace = no_trace,
    *,
    safety: bool,
) -> RolledBack:
    """Turn a machine back, after a point of what is there, which is pinned. One that an earlier
    try has noted gets no other: its disks are half of the one and half of the other. The point that
    it is turned back to is kept until that is done (``drvm/wiring/keeping.py``)."""
    with kept(wiring, plan.manifest, f"drvm restore --in-place of {plan.vm_name}", trace) as told:
        return _in_place(wiring, plan, progress, trace, safety=safety, warnings=told)


def _in_place(
    wiring: Wiring,
    plan: RollbackPlan,
    progress: Progress,
    trace: Trace,
    *,
    safety: bool,
    warnings: tuple[str, ...],
) -> RolledBack:
    parts = wiring.parts(wiring.local_host(), trace)
    guard = make_ready(plan, parts)
    safety_point = plan.again.safety_point if plan.again is not None else None
    if safety and plan.again is None:
        here = parts.host.uri  # whatever speaks for another place: it is this one that is changed
        policy = policy_of_vm(wiring, plan.vm_uuid, here)
        options = BackupOptions.of(policy, plan.vm_name)
        options = replace(options, exclude_disks=options.exclude_disks - plan.named.keys())
        result = take_point(wiring, plan.vm_uuid, options, progress, trace, uri=here)
        note = f"before it was turned back to {plan.manifest.id}"
        pin_point(wiring, result.point, note, trace)
        safety_point = result.point.id
        trace("safety-point-taken")
    restorer = wiring.restorer(trace)
    done = turn_back(plan, parts, restorer, guard, safety_point, progress)
    return RolledBack(done, safety_point, warnings)


def half_turned_back(wiring: Wiring, host: Host) -> list[Finding]:
    """Machines of the host whose disks are of two instants. Changes nothing."""
    notes, found = wiring.parts(host).journal.rollbacks, []
    for uuid in notes.machines():
        try:
            note = notes.read(uuid)
        except CaptureError as problem:
            found.append(Finding(f"half turned back {uuid}", False, problem.message, problem.hint))
            continue
        domain = host.find_domain(uuid)
        if note is None or domain is None:
            continue
        machine = domainxml.read(domain.xml(inactive=True))
        if note.concerns(machine, wiring.image_tool()):
            words = f"to point {note.point_id} since {note.started}: don't start it"
            found.append(Finding(f"half turned back {domain.name}", False, words, note.hint))
    return found
