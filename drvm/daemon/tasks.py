"""The jobs of a config, and their tasks: which machine or repository, when, and within what limits.

A job has the name that the record of runs, ``drvm run`` and people use. Those without a schedule
are done only when somebody asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from drvm.config.policies import PolicyConfig
from drvm.config.settings import Settings
from drvm.core.errors import UsageError
from drvm.core.process import Processes
from drvm.core.text import printable
from drvm.daemon.task import Plan, Task
from drvm.daemon.tasks_fleet import View
from drvm.daemon.tasks_upkeep import Run, UpkeepWork
from drvm.daemon.tasks_vms import Member, OpenWiring, VmWork
from drvm.drill.group import Absent
from drvm.runs.model import Kind
from drvm.schedule.timing import Timing
from drvm.wiring.drills import absent_from
from drvm.wiring.due import timing_of
from drvm.wiring.fleet import FleetVm
from drvm.wiring.upkeep import UPKEEP_RETRY, retry_of

BACKUPS, DRILLS, UPKEEP = "backups", "drills", "upkeep"
"""Keys of limits, beside ``host URI`` and ``repository URL``."""

ASKED = Timing("0 0 1 1 *")
"""Of what nobody waits for: the engine never sees such a task."""

LOCKS_SCHEDULE = "17 4 * * *"
"""Once a day: a quarter of the shortest lock there may be."""

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
    return tuple(
        itertools.chain(
            _policy_jobs(settings, VmWork(doing.open_wiring, doing.processes)),
            _upkeep_jobs(settings, UpkeepWork(doing.open_wiring), doing),
        )
    )


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


def _policy_jobs(settings: Settings, work: VmWork) -> Iterable[Job]:
    repository = settings.repository.url if settings.repository is not None else ""
    for number, policy in enumerate(settings.policies):
        job = f"backup {policy.name}"
        yield Job(
            job,
            "backup",
            _about_backup(policy),
            timing_of(policy, policy.schedule, policy.jitter_s),
            _Backups(job, policy, work, number * _RANKS, repository),
        )
        drill = policy.drill
        if drill is not None:
            job = f"drill {policy.name}"
            timing = timing_of(policy, drill.schedule, policy.jitter_s)
            about = f"the latest points of policy {policy.name}"
            order = _FIRST_DRILL + number * _RANKS
            yield Job(job, "drill", about, timing, _Drills(job, policy, work, order))


def _about_backup(policy: PolicyConfig) -> str:
    groups = ", each host's at one instant" if policy.group else ""
    return f"a point of each VM of policy {policy.name}{groups}"


@dataclass(frozen=True, slots=True)
class _Backups:
    job: str
    policy: PolicyConfig
    work: VmWork
    order: int
    repository: str

    def __call__(self, view: View) -> list[Task]:
        mine = [vm for vm in view.fleet.vms if vm.policy == self.policy.name and vm.host]
        if not self.policy.group:
            return [self._task([vm], vm.name, vm.uuid) for vm in mine]
        by_host = itertools.groupby(sorted(mine, key=lambda vm: vm.host or ""), lambda vm: vm.host)
        groups = [(host, list(vms)) for host, vms in by_host]
        return [
            self._task(vms, ", ".join(vm.name for vm in vms), f"{self.policy.name} on {host}")
            for host, vms in groups
        ]

    def _task(self, vms: Sequence[FleetVm], name: str, subject: str) -> Task:
        members = [Member.of(vm) for vm in vms]
        host, policy = members[0].host, self.policy
        if policy.group:
            run = self.work.group(self.job, policy, members)
        else:
            run = self.work.backup(self.job, policy, members[0])
        good = [vm.last_created for vm in vms]
        known = [moment for moment in good if moment is not None]
        return Task(
            job=self.job,
            kind="backup",
            timing=timing_of(policy, policy.schedule, policy.jitter_s) or ASKED,
            run=run,
            vm=printable(name, 200),
            vm_uuid=subject,
            host=host,
            touches=frozenset(vm.uuid for vm in vms),
            uses=(BACKUPS, f"host {host}", f"repository {self.repository}"),
            order=self.order + min(policy.rank(vm.name) for vm in vms),
            retry=retry_of(policy),
            last_good=min(known) if len(known) == len(good) else None,
        )


@dataclass(frozen=True, slots=True)
class _Drills:
    job: str
    policy: PolicyConfig
    work: VmWork
    order: int

    def __call__(self, view: View) -> list[Task]:
        """Of machines that have a point and are not gone for good; of all together where the
        policy's drills have stages."""
        assert self.policy.drill is not None
        mine = [
            vm
            for vm in view.fleet.vms
            if vm.policy == self.policy.name and vm.last is not None and vm.state is not None
        ]
        if self.policy.drill.stages:
            absent = absent_from(view.fleet.vms, self.policy)
            return [self._task(view, mine, self.policy.name, absent)] if mine else []
        return [self._task(view, [vm], vm.uuid) for vm in mine]

    def _task(
        self, view: View, vms: Sequence[FleetVm], subject: str, absent: Sequence[Absent] = ()
    ) -> Task:
        policy, drill = self.policy, self.policy.drill
        assert drill is not None
        known = [view.drilled[vm.uuid] for vm in vms if vm.uuid in view.drilled]
        return Task(
            job=self.job,
            kind="drill",
            timing=timing_of(policy, drill.schedule, policy.jitter_s) or ASKED,
            run=self.work.drill(policy, vms, absent),
            vm=printable(", ".join(vm.name for vm in vms), 200),
            vm_uuid=subject,
            host=vms[0].host or "",
            uses=(DRILLS,),
            order=self.order + min(policy.rank(vm.name) for vm in vms),
            retry=retry_of(policy),
            last_good=min(known) if len(known) == len(vms) else None,
        )


def _upkeep_jobs(settings: Settings, work: UpkeepWork, doing: Doing) -> Iterable[Job]:
    prune, gc, check = settings.prune, settings.gc, settings.check
    words = "points that no rule of the policies keeps are removed"
    yield _upkeep("prune", "prune", words, timing_of(prune, prune.schedule), work.prune())
    words = "packs that no point needs are condemned, then deleted"
    yield _upkeep("gc", "gc", words, timing_of(gc, gc.schedule), work.gc())
    words = "is everything there, and is it what was written?"
    yield _upkeep("check", "check", words, timing_of(check, check.schedule), work.check(check))
    if settings.repository is not None and settings.repository.object_lock is not None:
        words = "the locks of what stays are lengthened"
        yield _upkeep("locks", "locks", words, Timing(LOCKS_SCHEDULE), work.locks())
    for copy in settings.copies:
        run = work.copy(copy, doing.open_copies[copy.name])
        words = f"new points go to {copy.repository.url}"
        yield _upkeep(f"copy {copy.name}", "copy", words, timing_of(copy, copy.schedule), run)


def _upkeep(name: str, kind: Kind, about: str, timing: Timing | None, run: Run) -> Job:
    task = Task(
        job=name,
        kind=kind,
        timing=timing or ASKED,
        run=run,
        uses=(f"copy {name}" if kind == "copy" else UPKEEP,),
        order=_FIRST_UPKEEP,
        retry=UPKEEP_RETRY,
    )
    return Job(name, kind, about, timing, lambda _view: [task], needs_fleet=False)
