"""Drills, as the command line and the daemon begin them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drvm.config.drills import DrillConfig, StageConfig
from drvm.config.policies import PolicyConfig
from drvm.config.section import matches
from drvm.core.clock import CLOCK_TOLERANCE
from drvm.core.errors import HostUnreachable, UsageError
from drvm.core.findings import Finding
from drvm.core.text import printable
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Check
from drvm.drill.group import Absent, GroupPlan, StageRequest, plan_group, points_of_group
from drvm.drill.leftovers import (
    Leftover,
    Leftovers,
    find_leftovers,
    find_noted,
    forget,
    hosts_noted,
    remove_leftovers,
)
from drvm.drill.plan import DrillPlan, DrillRequest, Method, plan_drill
from drvm.host.model import Host
from drvm.host.reach import is_remote
from drvm.repository.manifest import Manifest
from drvm.repository.points import Point
from drvm.restore.machine.definition import VirtType
from drvm.schedule.cron import fires_between
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import FleetVm, fleet_of, policy_of_point

Plan = DrillPlan | GroupPlan


@dataclass(frozen=True, slots=True)
class DrillWish:
    """What somebody wants otherwise than the policies say; ``None``: nothing."""

    method: Method | None = None
    host_uri: str | None = None
    virt_type: VirtType | None = None


AS_CONFIGURED = DrillWish()


@dataclass(frozen=True, slots=True)
class Owed:
    """What a policy's schedule of drills owes: a group, or some of its machines. ``absent``: those
    that should be drilled with them and can't."""

    policy: PolicyConfig
    points: tuple[Point, ...]
    absent: tuple[Absent, ...] = ()


@dataclass(frozen=True, slots=True)
class Members:
    """The machines of a policy. ``points``: the good ones, oldest first, of those that a drill can
    bring up. ``absent``: those that none can. ``images``: names under which image files are
    stored, which are no machine, so that none is missing."""

    points: tuple[Point, ...] = ()
    absent: tuple[Absent, ...] = ()
    images: tuple[str, ...] = ()


def drill_checks(config: DrillConfig, vm: str) -> tuple[Check, ...]:
    """Those that are for this machine, in their order; without any, that its agent answers."""
    mine = tuple(asked.check for asked in config.checks if matches(vm, asked.vms))
    return mine or (AgentCheck(),)


def plan_drill_of(wiring: Wiring, point: Manifest, wish: DrillWish = AS_CONFIGURED) -> DrillPlan:
    """As the policy of the VM says; without one, the drill proves that the guest's agent answers.
    Raises ``PreflightFailed``."""
    return _plan_one(wiring, policy_of_point(wiring, point), point, wish)


def plan_group_of(
    wiring: Wiring,
    policy: PolicyConfig,
    points: Sequence[Point],
    wish: DrillWish = AS_CONFIGURED,
    absent: Sequence[Absent] = (),
) -> GroupPlan:
    """The stages of a policy, of the machines that have these ``points``, one of each. Machines
    that no stage names come last, together. Raises ``PreflightFailed``."""
    assert policy.drill is not None
    requests = [
        StageRequest(tuple(_request(wiring, policy, p.manifest, wish) for p in mine), wait_s)
        for mine, wait_s in in_stages(policy.drill.stages, points)
    ]
    host = _host(wiring, policy, wish)
    return plan_group(wiring.repository(), host, requests, wiring.clock, absent=absent)


def in_stages(
    stages: Sequence[StageConfig], points: Sequence[Point]
) -> list[tuple[tuple[Point, ...], float]]:
    """Which machines come up together, in their order, and how long is waited behind them (s). Each
    in the first stage that names it; a stage that names none is left out."""
    found, left = [], list(points)
    for stage in stages:
        mine = tuple(point for point in left if matches(point.manifest.vm, stage.vms))
        left = [point for point in left if point not in mine]
        found.append((mine, stage.wait_s or 0.0))
    return [(mine, wait_s) for mine, wait_s in [*found, (tuple(left), 0.0)] if mine]


def plan_policy(
    wiring: Wiring,
    policy: PolicyConfig,
    points: Sequence[Point],
    wish: DrillWish = AS_CONFIGURED,
    absent: Sequence[Absent] = (),
) -> list[Plan]:
    """One drill of all where the policy has stages, else one of each. ``points``: the good ones
    of its machines, oldest first; ``absent``: its machines that have none."""
    uuids = list(dict.fromkeys(point.manifest.vm_uuid for point in points))
    if policy.drill is None or not policy.drill.stages:
        latest = {point.manifest.vm_uuid: point for point in points}
        return [_plan_one(wiring, policy, latest[uuid].manifest, wish) for uuid in uuids]
    chosen = points_of_group(points, uuids)
    return [plan_group_of(wiring, policy, [chosen[uuid] for uuid in uuids], wish, absent)]


def members_by_policy(wiring: Wiring, points: Sequence[Point]) -> dict[str, Members]:
    """Of each policy, by its name. ``points``: the good ones, oldest first."""
    vms = fleet_of(wiring, points).vms
    found = {}
    for policy in wiring.settings.policies:
        mine = [vm for vm in vms if vm.policy == policy.name]
        machines = {vm.uuid for vm in mine if is_machine(vm)}
        found[policy.name] = Members(
            tuple(point for point in points if point.manifest.vm_uuid in machines),
            absent_from(vms, policy),
            tuple(vm.name for vm in mine if not is_machine(vm)),
        )
    return found


def is_machine(vm: FleetVm) -> bool:
    """Whether its last good point, if any, is of a machine: image files are none."""
    return vm.last is None or vm.last.manifest.definition is not None


def absent_from(vms: Sequence[FleetVm], policy: PolicyConfig) -> tuple[Absent, ...]:
    """The machines of a policy that can't be drilled, and those that may be its."""
    found = []
    for vm in vms:
        if vm.policy == policy.name and vm.last is None:
            found.append(Absent(vm.name, "it has no good point"))
        elif vm.policy is None and vm.doubt and policy.covers(vm.name, None, None) is not False:
            found.append(Absent(vm.name, f"nobody can tell its policy: {vm.doubt}"))
    return tuple(found)


def owed(wiring: Wiring, points: Sequence[Point]) -> list[Owed]:
    """What the schedules owe now: machines that were not drilled since their policy's last time,
    or never; all of a group where one of them is. ``points``: the good ones, oldest first."""
    last, now = last_drills(wiring), wiring.clock.now()
    every = members_by_policy(wiring, points)
    found = []
    for policy in wiring.settings.policies:
        members = every[policy.name]
        mine = due_of(policy, members.points, last, now)
        if mine:
            together = policy.drill is not None and policy.drill.stages
            found.append(Owed(policy, mine, members.absent if together else ()))
    return found


def due_of(
    policy: PolicyConfig, points: Sequence[Point], last: Mapping[str, datetime], now: datetime
) -> tuple[Point, ...]:
    """Those of the points whose machines are to be drilled. ``last``: as ``last_drills``."""
    if policy.drill is None or policy.drill.schedule is None:
        return ()
    when = policy.drill.schedule, policy.time_zone
    due = {
        uuid
        for uuid in {point.manifest.vm_uuid for point in points}
        if uuid not in last or fires_between(*when, last[uuid], now, limit=1)
    }
    if policy.drill.stages and due:
        return tuple(points)
    return tuple(point for point in points if point.manifest.vm_uuid in due)


def last_drills(wiring: Wiring) -> Mapping[str, datetime]:
    """When each machine's last drill was kept, by UUID: from the repository, whoever ran it. No
    record is read, as there may be thousands."""
    return wiring.repository().drills.times(wiring.clock.now() + CLOCK_TOLERANCE)


def find_drill_leftovers(wiring: Wiring, host: Host) -> Leftovers:
    return find_leftovers(host, *wiring.drill_directories())


def sweep_drills(wiring: Wiring, host: Host) -> list[Finding]:
    """Remove what killed drills left on a host; a finding for each."""
    done = []
    for removed in remove_leftovers(host, find_drill_leftovers(wiring, host)):
        words = "; ".join(removed.problems) or "removed"
        done.append(Finding(str(removed.directory), not removed.problems, words))
    return done


def noted_drills(wiring: Wiring, uri: str) -> tuple[Leftover, ...]:
    """Dead ones on a host that is not asked."""
    return find_noted(uri, *wiring.drill_directories())


def if_gone(uri: str) -> str:
    """What to do about drills on a host that does not answer."""
    return (
        f"drvm doctor --fix removes it when the host is back; where it is gone for good, "
        f"drvm doctor --forget-drills {uri}"
    )


def drills_to_forget(wiring: Wiring, uri: str) -> tuple[tuple[Leftover, ...], str]:
    """Those that are known to have been on a host which does not answer, and why it does not.
    Raises ``UsageError`` where it answers, or is this machine: what may still run is not to be
    forgotten."""
    if not (dead := noted_drills(wiring, uri)):
        raise UsageError(
            f"no dead drill is known to have been on {printable(uri, 200)}",
            hint="drvm doctor names the hosts",
        )
    if not is_remote(uri):
        raise UsageError(f"{uri} is this machine", hint="start libvirtd, then drvm doctor --fix")
    try:
        wiring.host(uri).hostname()
    except HostUnreachable as error:
        return dead, error.message
    raise UsageError(f"{uri} answers", hint="drvm doctor --fix removes what dead drills left there")


def forget_noted(dead: Sequence[Leftover]) -> list[Finding]:
    """A finding for each."""
    parts = {left.directory: ", ".join(left.parts) for left in dead}
    return [
        Finding(
            str(one.directory),
            not one.problems,
            "; ".join(one.problems)
            or f"forgotten; that host may still have: {parts[one.directory]}",
        )
        for one in forget(dead)
    ]


def drilled_elsewhere(wiring: Wiring) -> tuple[str, ...]:
    """The URIs of hosts that the settings don't name, and that drills of this machine used."""
    noted = hosts_noted(*wiring.drill_directories())
    return tuple(uri for uri in noted if uri not in wiring.settings.host_uris)


def _plan_one(
    wiring: Wiring, policy: PolicyConfig | None, point: Manifest, wish: DrillWish
) -> DrillPlan:
    request = _request(wiring, policy, point, wish)
    host = _host(wiring, policy, wish)
    return plan_drill(wiring.repository(), host, request, wiring.clock)


def _request(
    wiring: Wiring, policy: PolicyConfig | None, point: Manifest, wish: DrillWish
) -> DrillRequest:
    drill = (policy.drill if policy is not None else None) or DrillConfig()
    return DrillRequest(
        point=point,
        checks=drill_checks(drill, point.vm),
        boot_timeout_s=drill.boot_timeout_s,
        rto_target_s=drill.rto_s,
        rpo_target_s=policy.rpo_s if policy is not None else None,
        directory=wiring.drill_directory(policy),
        virt_type=wish.virt_type,
        method=wish.method or drill.method,
        notes=wiring.drill_notes,
    )


def _host(wiring: Wiring, policy: PolicyConfig | None, wish: DrillWish) -> Host:
    configured = policy.drill.host if policy is not None and policy.drill is not None else None
    return wiring.host(wish.host_uri or configured)
