"""The jobs of a config, and their tasks: which machine or repository, and within what limits.

Jobs without a schedule are done only when somebody asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from drvm.config.settings import Settings
from drvm.core.errors import UsageError
from drvm.core.process import Processes
from drvm.core.text import printable
from drvm.daemon.task import Plan, Task, Work
from drvm.daemon.tasks_fleet import View
from drvm.daemon.tasks_upkeep import UpkeepWork
from drvm.daemon.tasks_vms import Member, OpenWiring, VmWork
from drvm.drill.group import Absent
from drvm.host.reach import is_here
from drvm.runs.model import Kind
from drvm.schedule.timing import Timing
from drvm.wiring.drills import absent_from
from drvm.wiring.fleet import FleetVm
from drvm.wiring.timetable import PlannedJob, group_subject, planned_jobs

BACKUPS, DRILLS, UPKEEP = "backups", "drills", "upkeep"
"""Keys of limits, beside ``host URI`` and ``repository URL``."""

ASKED = Timing("0 0 1 1 *")
"""Of what nobody waits for: the engine never sees such a task."""

_RANKS = 1 << 20
_FIRST_DRILL, _FIRST_UPKEEP = 1 << 50, 1 << 51
"""Orders: backups go first, in the order of their policies."""


@dataclass(frozen=True, slots=True)
class Job:
    """``timing``: ``None`` where only somebody's asking begins it. ``about``: what it does, for
    people. ``tasks`` are those of the machines that are there."""

    name: str
    kind: Kind
    about: str
    timing: Timing | None
    tasks: Callable[[View], Sequence[Task]]
    needs_fleet: bool = True


@dataclass(frozen=True, slots=True)
class Doing:
    """What runs are made of. ``open_copies``: by the names of copies."""

    open_wiring: OpenWiring
    open_copies: Mapping[str, OpenWiring]
    processes: Processes


def jobs_of(settings: Settings, doing: Doing) -> tuple[Job, ...]:
    """All that the config knows, whether they have a schedule or not."""
    vms, upkeep = VmWork(doing.open_wiring, doing.processes), UpkeepWork(doing.open_wiring)
    repository = settings.repository.url if settings.repository is not None else ""
    found = []
    for order, planned in enumerate(planned_jobs(settings)):
        if planned.kind == "backup":
            found.append(_job(planned, _Backups(planned, vms, order * _RANKS, repository)))
        elif planned.kind == "drill":
            found.append(_job(planned, _Drills(planned, vms, _FIRST_DRILL + order * _RANKS)))
        else:
            found.append(_job(planned, _Upkeep(planned, _upkeep(planned, settings, upkeep, doing))))
    return tuple(found)


def job_named(jobs: Sequence[Job], name: str) -> Job:
    """Raises ``UsageError``."""
    for job in jobs:
        if job.name == " ".join(name.split()):
            return job
    names = ", ".join(repr(job.name) for job in jobs)
    raise UsageError(f"there is no job {printable(name, 80)!r}", hint=f"there are: {names}")


def plan_of(jobs: Iterable[Job], view: View, settings: Settings) -> Plan:
    """What has a schedule."""
    tasks = [task for job in jobs if job.timing is not None for task in job.tasks(view)]
    return Plan(tasks, limits_of(settings))


def limits_of(settings: Settings) -> dict[str, int]:
    limits = {
        BACKUPS: settings.daemon.max_parallel,
        DRILLS: settings.daemon.max_parallel_drills,
        UPKEEP: 1,
    }
    for host in settings.hosts:
        if host.max_parallel is not None:
            limits[f"host {host.uri}"] = host.max_parallel
    stored = settings.repository
    if stored is not None and stored.max_parallel is not None:
        limits[f"repository {stored.url}"] = stored.max_parallel
    return limits


def _job(planned: PlannedJob, tasks: _Backups | _Drills | _Upkeep) -> Job:
    needs_fleet = not isinstance(tasks, _Upkeep)
    return Job(planned.name, planned.kind, _about(planned), planned.timing, tasks, needs_fleet)


def _about(planned: PlannedJob) -> str:
    if planned.policy is not None:
        name = planned.policy.name
        if planned.kind == "drill":
            return f"the latest points of policy {name}"
        groups = ", each host's at one instant" if planned.policy.group else ""
        return f"a point of each VM of policy {name}{groups}"
    if planned.copy is not None:
        return f"new points go to {planned.copy.repository.url}"
    return _ABOUT[planned.kind]


_ABOUT: Mapping[Kind, str] = {
    "prune": "points that no rule of the policies keeps are removed",
    "gc": "packs that no point needs are condemned, then deleted",
    "check": "is everything there, and is it what was written?",
    "locks": "the locks of what stays are lengthened",
}


@dataclass(frozen=True, slots=True)
class _Backups:
    job: PlannedJob
    work: VmWork
    order: int
    repository: str

    def __call__(self, view: View) -> list[Task]:
        """Of machines of this host: another one's are backed up by drvm there, which has their
        images."""
        policy = self.job.policy
        assert policy is not None
        here = (vm for vm in view.fleet.vms if vm.host is not None and is_here(vm.host))
        mine = [vm for vm in here if vm.policy == policy.name]
        if not policy.group:
            return [self._task([vm], vm.name, vm.uuid) for vm in mine]
        by_host: dict[str, list[FleetVm]] = {}
        for vm in sorted(mine, key=lambda vm: vm.host or ""):
            by_host.setdefault(vm.host or "", []).append(vm)
        return [
            self._task(vms, ", ".join(vm.name for vm in vms), group_subject(policy, host))
            for host, vms in by_host.items()
        ]

    def _task(self, vms: Sequence[FleetVm], name: str, subject: str) -> Task:
        members, job = [Member.of(vm) for vm in vms], self.job
        host, policy = members[0].host, job.policy
        assert policy is not None
        if policy.group:
            run = self.work.group(job.name, policy, members)
        else:
            run = self.work.backup(job.name, policy, members[0])
        good = [vm.last_created for vm in vms]
        known = [moment for moment in good if moment is not None]
        return Task(
            job=job.name,
            kind=job.kind,
            timing=job.timing or ASKED,
            run=run,
            vm=printable(name, 200),
            vm_uuid=subject,
            host=host,
            touches=frozenset(vm.uuid for vm in vms),
            uses=(BACKUPS, f"host {host}", f"repository {self.repository}"),
            order=self.order + min(policy.rank(vm.name) for vm in vms),
            retry=job.retry,
            last_good=min(known) if len(known) == len(good) else None,
        )


@dataclass(frozen=True, slots=True)
class _Drills:
    job: PlannedJob
    work: VmWork
    order: int

    def __call__(self, view: View) -> list[Task]:
        """Of machines that have a point and are not gone for good; of all together where the
        policy's drills have stages."""
        policy = self.job.policy
        assert policy is not None and policy.drill is not None
        mine = [
            vm
            for vm in view.fleet.vms
            if vm.policy == policy.name and vm.last is not None and vm.state is not None
        ]
        if policy.drill.stages:
            absent = absent_from(view.fleet.vms, policy)
            return [self._task(view, mine, policy.name, absent)] if mine else []
        return [self._task(view, [vm], vm.uuid) for vm in mine]

    def _task(
        self, view: View, vms: Sequence[FleetVm], subject: str, absent: Sequence[Absent] = ()
    ) -> Task:
        job, policy = self.job, self.job.policy
        assert policy is not None
        known = [view.drilled[vm.uuid] for vm in vms if vm.uuid in view.drilled]
        return Task(
            job=job.name,
            kind=job.kind,
            timing=job.timing or ASKED,
            run=self.work.drill(policy, vms, absent),
            vm=printable(", ".join(vm.name for vm in vms), 200),
            vm_uuid=subject,
            host=vms[0].host or "",
            uses=(DRILLS,),
            order=self.order + min(policy.rank(vm.name) for vm in vms),
            retry=job.retry,
            last_good=min(known) if len(known) == len(vms) else None,
        )


@dataclass(frozen=True, slots=True)
class _Upkeep:
    job: PlannedJob
    run: Work

    def __call__(self, _view: View) -> list[Task]:
        job = self.job
        return [
            Task(
                job=job.name,
                kind=job.kind,
                timing=job.timing or ASKED,
                run=self.run,
                uses=(f"copy {job.name}" if job.kind == "copy" else UPKEEP,),
                order=_FIRST_UPKEEP,
                retry=job.retry,
            )
        ]


def _upkeep(planned: PlannedJob, settings: Settings, work: UpkeepWork, doing: Doing) -> Work:
    if planned.copy is not None:
        target = doing.open_copies[planned.copy.name]
        return functools.partial(work.copy, planned.copy, target)
    works: Mapping[Kind, Work] = {
        "prune": work.prune,
        "gc": work.gc,
        "check": functools.partial(work.check, settings.check),
        "locks": work.locks,
    }
    return works[planned.kind]
