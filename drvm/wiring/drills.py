"""Drills, as the command line and the daemon begin them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from drvm.config.drills import DrillConfig, StageConfig
from drvm.config.policies import PolicyConfig
from drvm.config.section import matches
from drvm.core.errors import DrvmError, Interrupted
from drvm.core.findings import Finding
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.threads import Threads
from drvm.drill.checks.base import Check, Exports
from drvm.drill.checks.registry import make_check
from drvm.drill.disks import Disks, RestoredDisks, ServedDisks, VolumeDisks
from drvm.drill.group import GroupPlan, StageRequest, plan_group, points_of_group
from drvm.drill.leftovers import (
    Leftovers,
    find_leftovers,
    hosts_noted,
    remove_leftovers,
)
from drvm.drill.machine import Tools
from drvm.drill.plan import DrillPlan, DrillRequest, Method, plan_drill
from drvm.drill.run import run_drill, run_group
from drvm.drill.turns import turn
from drvm.host.model import Host
from drvm.report.model import DrillResult, encode_drill
from drvm.repository.manifest import Manifest
from drvm.repository.points import Point
from drvm.repository.select import select
from drvm.restore.machine.definition import VirtType
from drvm.restore.served.server import Service
from drvm.restore.served.supervised import serving
from drvm.schedule.cron import fires_between
from drvm.schedule.rpo import CLOCK_TOLERANCE
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import fleet_of, policy_of_point
from drvm.wiring.serving import service_of

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
    """What a policy's schedule of drills owes: a group, or some of its machines."""

    policy: PolicyConfig
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a plan: the results, or why there are none."""

    plan: Plan
    results: tuple[DrillResult, ...] = ()
    error: DrvmError | None = None


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


def plan_drill_of(wiring: Wiring, point: Manifest, wish: DrillWish = AS_CONFIGURED) -> DrillPlan:
    """As the policy of the VM says; without one, the drill proves that the guest's agent answers.
    Raises ``PreflightFailed``."""
    return _plan_one(wiring, policy_of_point(wiring, point), point, wish)


def plan_group_of(
    wiring: Wiring, policy: PolicyConfig, points: Sequence[Point], wish: DrillWish = AS_CONFIGURED
) -> GroupPlan:
    """The stages of a policy, of the machines that have these ``points``, one of each. Machines
    that no stage names come last, together. Raises ``PreflightFailed``."""
    assert policy.drill is not None
    requests = [
        StageRequest(tuple(_request(wiring, policy, p.manifest, wish) for p in mine), wait_s)
        for mine, wait_s in in_stages(policy.drill.stages, points)
    ]
    host = _host(wiring, policy, wish)
    return plan_group(wiring.repository(), host, requests, wiring.clock)


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
    wiring: Wiring, policy: PolicyConfig, points: Sequence[Point], wish: DrillWish = AS_CONFIGURED
) -> list[Plan]:
    """One drill of all where the policy has stages, else one of each. ``points``: the good ones
    of its machines, oldest first."""
    uuids = list(dict.fromkeys(point.manifest.vm_uuid for point in points))
    if policy.drill is None or not policy.drill.stages:
        latest = {point.manifest.vm_uuid: point for point in points}
        return [_plan_one(wiring, policy, latest[uuid].manifest, wish) for uuid in uuids]
    chosen = points_of_group(points, uuids)
    return [plan_group_of(wiring, policy, [chosen[uuid] for uuid in uuids], wish)]


def points_by_policy(wiring: Wiring, points: Sequence[Point]) -> dict[str, tuple[Point, ...]]:
    """Of the machines that are each policy's, by its name. ``points``: the good ones, oldest
    first."""
    policies = {vm.uuid: vm.policy for vm in fleet_of(wiring, points).vms}
    found: dict[str, list[Point]] = {}
    for point in points:
        if (name := policies.get(point.manifest.vm_uuid)) is not None:
            found.setdefault(name, []).append(point)
    return {name: tuple(mine) for name, mine in found.items()}


def owed(wiring: Wiring, points: Sequence[Point]) -> list[Owed]:
    """What the schedules owe now: machines that were not drilled since their policy's last time,
    or never; all of a group where one of them is. ``points``: the good ones, oldest first."""
    last, now = last_drills(wiring), wiring.clock.now()
    every = points_by_policy(wiring, points)
    found = []
    for policy in wiring.settings.policies:
        mine = due_of(policy, every.get(policy.name, ()), last, now)
        if mine:
            found.append(Owed(policy, mine))
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


def carry_out(
    wiring: Wiring, plan: Plan, progress: Progress, trace: Trace = no_trace
) -> tuple[DrillResult, ...]:
    """Drill when there is room for it, and keep the results in the repository, passed or not."""
    host = wiring.host(plan.uri)
    machines = plan.machines if isinstance(plan, GroupPlan) else (plan,)
    disks = _disks(wiring, host, machines[0], trace)
    tools = Tools(host, disks, wiring.clock, progress, trace, lambda point: _exports(wiring, point))
    with turn(host, machines, wiring.clock, progress):
        if isinstance(plan, GroupPlan):
            results = run_group(plan, tools)
        else:
            results = (run_drill(plan, tools),)
    for result in results:
        wiring.repository().drills.put(result.vm_uuid, result.id, encode_drill(result))
    return results


def carry_out_all(
    wiring: Wiring,
    plans: Sequence[Plan],
    progress: Progress,
    trace: Trace = no_trace,
    *,
    parallel: int = 1,
) -> list[Carried]:
    """What becomes of each, in their order, so many at once. An error ends that drill alone; an
    interrupt all of them, when each has taken down what it made."""
    parallel = min(parallel, len(plans))
    if parallel <= 1:
        return [_carried(wiring, plan, progress, trace) for plan in plans]
    end = threading.Event()
    shown = threading.Lock()

    def work(plan: Plan) -> Carried:
        with wiring.another() as own:
            return _carried(own, plan, _Beside(progress, _title(plan), end, shown), trace)

    wiring.passphrase()  # asked for once, and here
    threads = Threads(parallel, "drill")
    try:
        return [future.result() for future in [threads.submit(work, plan) for plan in plans]]
    finally:
        end.set()
        threads.end()


def find_drill_leftovers(wiring: Wiring, host: Host) -> Leftovers:
    return find_leftovers(host, *wiring.drill_directories())


def sweep_drills(wiring: Wiring, host: Host) -> list[Finding]:
    """Remove what killed drills left on a host; a finding for each."""
    done = []
    for removed in remove_leftovers(host, find_drill_leftovers(wiring, host)):
        words = "; ".join(removed.problems) or "removed"
        done.append(Finding(str(removed.directory), not removed.problems, words))
    return done


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


def _carried(wiring: Wiring, plan: Plan, progress: Progress, trace: Trace) -> Carried:
    try:
        return Carried(plan, carry_out(wiring, plan, progress, trace))
    except Interrupted:
        raise
    except DrvmError as error:
        return Carried(plan, error=error)


def _title(plan: Plan) -> str:
    return "group" if isinstance(plan, GroupPlan) else plan.vm


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


def _disks(wiring: Wiring, host: Host, plan: DrillPlan, trace: Trace) -> Disks:
    if plan.volumes is not None:
        return VolumeDisks(host, wiring.volume_restorer(host))
    if plan.request.method == "boot":
        return ServedDisks(
            host,
            wiring.image_tool(),
            lambda point: _service(wiring, point),
            wiring.processes,
            wiring.clock,
        )
    return RestoredDisks(wiring.restorer(trace))


def _service(wiring: Wiring, manifest: Manifest) -> Service:
    """Of a boot: what it reads is noted, so that the next one finds it at once."""
    point = select(wiring.repository().points(manifest.vm_uuid).points, manifest.id)
    return service_of(wiring, point, boot=True)


@contextlib.contextmanager
def _exports(wiring: Wiring, manifest: Manifest) -> Iterator[Exports]:
    point = select(wiring.repository().points(manifest.vm_uuid).points, manifest.id)
    service = service_of(wiring, point)
    with serving(wiring.processes, wiring.clock, service) as served:
        yield Exports(served.socket, service.disks)


@dataclass(frozen=True, slots=True)
class _Beside:
    """Implements ``Progress``: of one of several at once. Bytes of different drills don't add up,
    so only the stages are shown."""

    progress: Progress
    title: str
    end: threading.Event = field(repr=False)
    shown: threading.Lock = field(repr=False)

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self._heed()
        with self.shown:
            self.progress.stage(f"{self.title}: {title}")

    def advance(self, done_bytes: int) -> None:
        self._heed()

    def _heed(self) -> None:
        if self.end.is_set():
            raise Interrupted("the drills were interrupted")
