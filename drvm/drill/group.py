"""Machines that are drilled together: which points, in which order, as a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import PreflightFailed, UsageError
from drvm.core.ids import new_point_id
from drvm.drill import room as rooms
from drvm.drill.place import drill_name
from drvm.drill.plan import DrillPlan, DrillRequest, Look, plan_machine, room_problems
from drvm.drill.ways import asked_at, needed
from drvm.host.model import Host
from drvm.repository.points import Point
from drvm.repository.repository import Repository

MAX_MACHINES = 100


@dataclass(frozen=True, slots=True)
class StageRequest:
    """``wait_s``: after its checks have passed, before the next stage begins."""

    machines: tuple[DrillRequest, ...]
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StagePlan:
    machines: tuple[DrillPlan, ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class Absent:
    """A machine that should be drilled and can't be. ``why``: such as "it has no good point"."""

    vm: str
    why: str

    def __str__(self) -> str:
        return f"{self.vm}: {self.why}"


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """``name``: of the network that all machines are in, and the last part of ``directory``, which
    is the group's own and holds no image. ``one_instant``: their points were taken together.
    ``absent``: members that are not drilled with it, so that it can't prove the whole group."""

    id: str
    name: str
    directory: Path
    stages: tuple[StagePlan, ...]
    host: str
    one_instant: bool
    plan_s: float
    absent: tuple[Absent, ...] = ()

    @property
    def uri(self) -> str:
        return self.machines[0].uri

    @property
    def machines(self) -> tuple[DrillPlan, ...]:
        return tuple(machine for stage in self.stages for machine in stage.machines)

    def alike(self, plan: DrillPlan) -> tuple[str, ...]:
        """The other machines that had an address of this one's, when their points were taken, or
        are asked at one."""
        mine = _addresses(plan)
        return tuple(m.vm for m in self.machines if m is not plan and _addresses(m) & mine)


def plan_group(
    repository: Repository,
    host: Host,
    stages: Sequence[StageRequest],
    clock: Clock,
    look: Look = rooms.look,
    absent: Sequence[Absent] = (),
) -> GroupPlan:
    """As ``plan_drill``, of each machine; the problems of all at once, and room for all."""
    requests = [request for stage in stages for request in stage.machines]
    _check(stages, requests)
    started_s = clock.monotonic_s()
    group_id = new_point_id()
    name = drill_name(group_id)
    found: list[str] = []
    planned = []
    for stage in stages:
        machines = []
        for request in stage.machines:
            plan, problems = plan_machine(repository, host, request, clock, network=name)
            found += [f"{plan.vm}: {problem}" for problem in problems]
            machines.append(plan)
        planned.append(StagePlan(tuple(machines), stage.wait_s))
    every = [machine for stage in planned for machine in stage.machines]
    found += _same_cards(every)
    found += room_problems(host, every, look, clock)
    if found:
        raise PreflightFailed(f"the group can't be drilled on {host.uri}", problems=found)
    groups = {request.point.group for request in requests}
    return GroupPlan(
        id=group_id,
        name=name,
        directory=every[0].directory.parent / name,
        stages=tuple(planned),
        host=every[0].host,
        one_instant=len(groups) == 1 and None not in groups,
        plan_s=clock.monotonic_s() - started_s,
        absent=tuple(absent),
    )


def points_of_group(points: Sequence[Point], vms: Sequence[str]) -> dict[str, Point]:
    """The latest good points of these machines (UUIDs), by UUID: those that were taken together,
    where there are such of all of them, and no newer than the latest of each otherwise.

    ``points``: the good ones, oldest first. A machine without any is not in the answer.
    """
    wanted = set(vms)
    latest: dict[str, Point] = {}
    together: dict[str, dict[str, Point]] = {}
    whole: dict[str, Point] = {}
    for point in points:
        vm = point.manifest.vm_uuid
        if vm not in wanted:
            continue
        latest[vm] = point
        if point.manifest.group is not None:
            mine = together.setdefault(point.manifest.group, {})
            mine[vm] = point
            if mine.keys() == wanted:
                whole = mine
    return whole or latest


def _same_cards(machines: Sequence[DrillPlan]) -> Iterator[str]:
    """In the one network of the group, what asks one of two such machines may be answered by the
    other. Harmless where nothing is asked over the network."""
    owners: dict[str, list[DrillPlan]] = {}
    for machine in machines:
        for card in machine.cards:
            owners.setdefault(card.mac, []).append(machine)
    for mac, mine in owners.items():
        if len(mine) > 1 and any("network" in needed(machine.checks) for machine in mine):
            names = " and ".join(machine.vm for machine in mine)
            yield (
                f"{names} have the same MAC address, {mac}: in one network neither "
                "can be told from the other; leave one out, or their checks over the network"
            )


def _addresses(plan: DrillPlan) -> set[IPv4Address | IPv6Address]:
    """Those that it had, and those that its checks ask."""
    had = (address for card in plan.cards for address in card.had)
    return {a.ip for a in (*had, *asked_at(plan.checks)) if not a.is_link_local}


def _check(stages: Sequence[StageRequest], requests: Sequence[DrillRequest]) -> None:
    if not requests or not all(stage.machines for stage in stages):
        raise UsageError("a stage without a machine proves nothing")
    if len(requests) > MAX_MACHINES:
        raise UsageError(f"a group can have {MAX_MACHINES} machines, not {len(requests)}")
    if len({request.point.vm_uuid for request in requests}) < len(requests):
        raise UsageError("a machine can be in one stage of its group only")
