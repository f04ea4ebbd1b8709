"""What backups and drills of machines do when their time has come: hooks, lease, work, outcome."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from drvm.backup.run import BackupResult
from drvm.config.policies import PolicyConfig
from drvm.core.errors import CaptureError, DrillFailed, DrvmError, Locked
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.daemon.hooks import Hooks, Result, Subject
from drvm.daemon.task import Outcome, Work
from drvm.drill.group import Absent, GroupPlan
from drvm.repository.manifest import Manifest
from drvm.wiring.assembly import Wiring
from drvm.wiring.drilling import Carried, carry_out
from drvm.wiring.drills import plan_policy
from drvm.wiring.fleet import FleetVm
from drvm.wiring.foreign import foreign_words
from drvm.wiring.jobs import BackupOptions, refuse_busy, take_group, take_point
from drvm.wiring.leases import leased

log = logging.getLogger("drvm.daemon")

OpenWiring = Callable[[], AbstractContextManager[Wiring]]
"""Every run opens what it needs anew: a store that was away is no lasting harm."""


@dataclass(frozen=True, slots=True)
class Member:
    """A machine as it was seen last, and on which host."""

    name: str
    uuid: str
    host: str

    @staticmethod
    def of(vm: FleetVm) -> Member:
        assert vm.host is not None
        return Member(vm.name, vm.uuid, vm.host)

    def subject(self, job: str) -> Subject:
        return Subject(job, self.name, self.uuid, self.host)


@dataclass(frozen=True, slots=True)
class VmWork:
    """Makes the runs of one config."""

    open_wiring: OpenWiring
    processes: Processes

    def backup(self, job: str, policy: PolicyConfig, vm: Member) -> Work:
        return functools.partial(self._back_up, job, policy, vm)

    def group(self, job: str, policy: PolicyConfig, vms: Sequence[Member]) -> Work:
        """Of one host."""
        return functools.partial(self._back_up_group, job, policy, tuple(vms))

    def drill(
        self, policy: PolicyConfig, vms: Sequence[FleetVm], absent: Sequence[Absent] = ()
    ) -> Work:
        """Of one machine, or of all of a policy whose drills have stages."""
        uuids = frozenset(vm.uuid for vm in vms)
        return functools.partial(self._drill, policy, uuids, tuple(absent))

    def _back_up(self, job: str, policy: PolicyConfig, vm: Member, progress: Progress) -> Outcome:
        options = BackupOptions.of(policy, vm.name)
        hooks = Hooks(policy.hooks, self.processes)
        with self._leased([vm], progress) as (opened, renewing):

            def work() -> Result:
                taken = take_point(
                    opened(), vm.uuid, options, renewing, uri=vm.host, heed=_heeding(progress)
                )
                return _result(vm.name, taken)

            return hooks.around(vm.subject(job), renewing, work).told()

    @contextlib.contextmanager
    def _leased(
        self, vms: Sequence[Member], progress: Progress
    ) -> Iterator[tuple[Callable[[], Wiring], Progress]]:
        """Raises ``Locked``, before any hook: nobody's application is to stop for what is only put
        off. What else fails is raised by the function that it gives, so that hooks hear of it."""
        with contextlib.ExitStack() as stack:
            renewing, failure = progress, None
            try:
                wiring = stack.enter_context(self.open_wiring())
                refuse_busy(wiring, {vm.uuid: vm.name for vm in vms})
                renewing = stack.enter_context(leased(wiring, [vm.uuid for vm in vms], progress))
            except Locked:
                raise
            except DrvmError as error:
                failure = error

            def opened() -> Wiring:
                if failure is not None:
                    raise failure
                return wiring

            yield opened, renewing

    def _back_up_group(
        self, job: str, policy: PolicyConfig, vms: tuple[Member, ...], progress: Progress
    ) -> Outcome:
        """Hooks are run for each member: those before all first, those after when all are done."""
        hooks = Hooks(policy.hooks, self.processes)
        results: dict[str, Result] = {}
        begun: list[Member] = []
        with self._leased(vms, progress) as (opened, renewing):
            try:
                for vm in vms:
                    begun.append(vm)
                    hooks.before(vm.subject(job), renewing)
                results = _take_group(opened(), policy, vms, renewing, _heeding(progress))
            except DrvmError as error:
                results = {vm.uuid: Result(failure=error) for vm in begun}
            after = [(vm, hooks.after(vm.subject(job), results[vm.uuid], progress)) for vm in begun]
        return _together(after)

    def _drill(
        self,
        policy: PolicyConfig,
        uuids: frozenset[str],
        absent: Sequence[Absent],
        progress: Progress,
    ) -> Outcome:
        done: list[Carried] = []
        foreign: list[str] = []
        with self.open_wiring() as wiring:
            only = next(iter(uuids)) if len(uuids) == 1 else None
            points = wiring.repository().points(only).points
            mine = [point for point in points if point.manifest.vm_uuid in uuids]
            for plan in plan_policy(wiring, policy, mine, absent=absent):
                drilled = plan.machines if isinstance(plan, GroupPlan) else (plan,)
                told = (foreign_words(wiring, one.request.point) for one in drilled)
                foreign += [words for words in told if words]
                done.append(carry_out(wiring, plan, progress))
        return _drilled(done, foreign)


def _heeding(progress: Progress) -> Callable[[], None]:
    """Of the run itself: what renews leases may hang with the store."""
    return lambda: progress.advance(0)


def _take_group(
    wiring: Wiring,
    policy: PolicyConfig,
    vms: tuple[Member, ...],
    progress: Progress,
    heed: Callable[[], None],
) -> dict[str, Result]:
    taken = take_group(
        wiring,
        [vm.uuid for vm in vms],
        lambda vm: BackupOptions.of(policy, vm),
        progress,
        uri=vms[0].host,
        heed=heed,
    )
    found = zip(vms, taken, strict=True)
    return {
        vm.uuid: Result(failure=made) if isinstance(made, DrvmError) else _result(vm.name, made)
        for vm, (_, made) in found
    }


def _drilled(done: Sequence[Carried], foreign: Sequence[str]) -> Outcome:
    """What is kept and failed is not tried again before its time. Raises the first error of what
    has no result that is kept."""
    results = [result for one in done for result in one.results]
    warnings = [f"{result.vm}: {text}" for result in results for text in result.warnings]
    for words in (*foreign, *warnings):
        log.warning("%s", words)
    ids = ", ".join(result.id for result in results)
    failed = [result for result in results if not result.passed]
    if failed:
        told = [
            f"{one.vm}: the drill of point {one.point} failed: {one.why_failed}" for one in failed
        ]
        return Outcome(ids, failure=DrillFailed("; ".join(told), hint="drvm report shows why"))
    for one in done:
        if one.error is not None:
            raise one.error
    times = [f"{result.vm}: RTO {result.rto_seconds or 0.0:.0f} s" for result in results]
    message = "; ".join((*times, *foreign, *warnings))
    return Outcome(ids, warned=bool(warnings), message=message)


def _result(name: str, taken: BackupResult) -> Result:
    """``failure`` where the point is good, and the guest is not yet back on its own images."""
    manifest = taken.point.manifest
    _log_point(name, manifest)
    outcome = Outcome(
        result=manifest.id,
        stored_bytes=manifest.stored_bytes,
        warned=bool(manifest.warnings),
        message="; ".join(manifest.warnings),
    )
    return Result(outcome, taken.cleanup)


def _log_point(name: str, manifest: Manifest) -> None:
    words = "%s: point %s, %s, %d bytes stored"
    log.info(words, name, manifest.id, manifest.consistency, manifest.stored_bytes)
    for warning in manifest.warnings:
        log.warning("%s: %s", name, warning)


def _together(results: Sequence[tuple[Member, Result]]) -> Outcome:
    """Of a group. Raises the first failure, which names the machines of all."""
    failures = [(vm, result.failure) for vm, result in results if result.failure is not None]
    if failures:
        first = failures[0][1]
        if any(str(failure) != str(first) for _, failure in failures[1:]) or len(failures) < len(
            results
        ):
            first.message = "; ".join(f"{vm.name}: {failure.message}" for vm, failure in failures)
            if isinstance(first, Locked):  # it can't be put off as if nothing had been done
                raise CaptureError(first.message, hint=first.hint)
        raise first
    told = [(vm, result.outcome) for vm, result in results]
    return Outcome(
        result=", ".join(outcome.result for _, outcome in told),
        stored_bytes=sum(outcome.stored_bytes for _, outcome in told),
        warned=any(outcome.warned for _, outcome in told),
        message="; ".join(f"{vm.name}: {o.message}" for vm, o in told if o.message),
    )
