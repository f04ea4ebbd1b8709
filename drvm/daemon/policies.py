"""Policies of the config -> jobs of the daemon."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from drvm.config.policies import PolicyConfig
from drvm.config.repositories import CopyConfig
from drvm.config.settings import Settings
from drvm.config.upkeep import RepositoryCheckConfig
from drvm.core.errors import DamageFound, DrvmError, Interrupted
from drvm.core.progress import Progress
from drvm.daemon.service import Job
from drvm.repository.checks import Share
from drvm.repository.points import Point
from drvm.wiring.assembly import Wiring
from drvm.wiring.copies import damage_of, plan_copy_of, run_copy_of
from drvm.wiring.drills import drill_latest
from drvm.wiring.fleet import covered
from drvm.wiring.jobs import (
    BackupOptions,
    by_host,
    take_group,
    take_point,
    watch_standing,
)
from drvm.wiring.upkeep import check_of, collect, lengthen_locks

log = logging.getLogger("drvm.daemon")

OpenWiring = Callable[[], AbstractContextManager[Wiring]]
"""Every run of a job opens what it needs anew: a store that was away is no lasting harm."""


def jobs(settings: Settings, open_wiring: OpenWiring) -> list[Job]:
    """A job for each schedule: of policies (those without one are only for hand-made points), of
    the check, of the collector. Locks are lengthened once a day, where there are any."""
    found = []
    for policy in settings.policies:
        if policy.schedule is not None:
            run = (
                _each_group(policy, open_wiring)
                if policy.group
                else _each_vm(policy, open_wiring, _back_up)
            )
            found.append(Job(f"backup {policy.name}", policy.schedule, policy.time_zone, run))
        if policy.drill is not None and policy.drill.schedule is not None:
            run = _each_vm(policy, open_wiring, _drill)
            found.append(Job(f"drill {policy.name}", policy.drill.schedule, policy.time_zone, run))
    if settings.repository is not None and settings.repository.object_lock is not None:
        found.append(Job("locks", "17 4 * * *", "UTC", _lengthen(open_wiring)))
    check = settings.check
    if check.schedule is not None:
        found.append(Job("check", check.schedule, check.time_zone, _check(check, open_wiring)))
    gc = settings.gc
    if gc.schedule is not None:
        found.append(Job("gc", gc.schedule, gc.time_zone, _collect(open_wiring)))
    return found


def _collect(open_wiring: OpenWiring) -> Callable[[Progress], None]:
    def run(progress: Progress) -> None:
        with open_wiring() as wiring:
            done, retired = collect(wiring, progress)
        log.info("%d packs condemned, %d deleted", done.condemned, done.deleted)
        if retired.failed:
            log.warning("%d points could not be written anew: drvm check", retired.failed)

    return run


def _check(check: RepositoryCheckConfig, open_wiring: OpenWiring) -> Callable[[Progress], None]:
    def run(progress: Progress) -> None:
        percent = check.read_data_percent
        with open_wiring() as wiring:
            result = check_of(wiring, Share(percent=percent) if percent else None, progress)
        log.info("%d points, %d of %d packs read", result.points, result.read_packs, result.packs)
        for line in (*result.finds.harmless, *result.finds.unfinished):
            log.warning("%s", line)
        if result.damaged:
            raise DamageFound(result.verdict, hint="drvm check says which; back up these machines")

    return run


def _lengthen(open_wiring: OpenWiring) -> Callable[[Progress], None]:
    def run(progress: Progress) -> None:
        with open_wiring() as wiring:
            plan, lengthened = lengthen_locks(wiring, progress)
            log.info("%d of %d objects locked until %s", lengthened, plan.objects, plan.until)
            if plan.damage is not None:
                raise plan.damage

    return run


def copy_jobs(
    settings: Settings, open_wiring: OpenWiring, targets: Mapping[str, OpenWiring]
) -> list[Job]:
    """A job for each copy that has a schedule; ``targets``: their repositories, by name."""
    return [
        Job(
            f"copy {copy.name}",
            copy.schedule,
            copy.time_zone,
            functools.partial(_copy, copy, open_wiring, targets[copy.name]),
        )
        for copy in settings.copies
        if copy.schedule is not None
    ]


def _copy(
    copy: CopyConfig, open_wiring: OpenWiring, open_target: OpenWiring, progress: Progress
) -> None:
    with open_wiring() as wiring, open_target() as other:
        plan = plan_copy_of(wiring, other, copy=copy)
        for problem in plan.problems:
            log.warning("%s: %s", copy.name, problem)
        copied = run_copy_of(wiring, other, plan, progress)
        for point in copied.points:
            _log_point(f"{copy.name}: {point.manifest.vm}", point)
        if damage := damage_of(copied):
            raise damage


def room_watch(open_wiring: OpenWiring) -> Job:
    """For what stands between backups, also by a policy that wants it no more."""

    def run(_progress: Progress) -> None:
        with open_wiring() as wiring:
            for folded in watch_standing(wiring):
                log.log(
                    logging.WARNING if folded.ok else logging.ERROR,
                    "%s: %s",
                    folded.name,
                    folded.detail,
                )

    return Job("room for standing overlays", "* * * * *", "UTC", run, aside=True)


def _each_vm(
    policy: PolicyConfig,
    open_wiring: OpenWiring,
    work: Callable[[Wiring, PolicyConfig, str, Progress], None],
) -> Callable[[Progress], None]:
    """The VMs that the policy covers now, one after the other; new ones join by themselves."""

    def run(progress: Progress) -> None:
        with open_wiring() as wiring:
            for vm in _covered(wiring, policy):
                progress.advance(0)  # a stop between two VMs
                try:
                    work(wiring, policy, vm, progress)
                except Interrupted:
                    raise
                except DrvmError as error:
                    _log_failure(vm, error)

    return run


def _each_group(policy: PolicyConfig, open_wiring: OpenWiring) -> Callable[[Progress], None]:
    """The VMs that the policy covers now, those of each host at one instant."""

    def run(progress: Progress) -> None:
        with open_wiring() as wiring:
            for names in by_host(wiring, _covered(wiring, policy)):
                progress.advance(0)
                try:
                    taken = take_group(
                        wiring, names, lambda vm: BackupOptions.of(policy, vm), progress
                    )
                except Interrupted:
                    raise
                except DrvmError as error:
                    _log_failure(f"the group {', '.join(names)}", error)
                    continue
                for vm, result in taken:
                    failure = result if isinstance(result, DrvmError) else result.cleanup
                    if not isinstance(result, DrvmError):
                        _log_point(vm, result.point)
                    if failure is not None:
                        _log_failure(vm, failure)

    return run


def _covered(wiring: Wiring, policy: PolicyConfig) -> list[str]:
    return covered(wiring, policy)


def _log_failure(what: str, error: DrvmError) -> None:
    hint = f" (hint: {error.hint})" if error.hint else ""
    log.error("%s: %s%s", what, error.message, hint)


def _back_up(wiring: Wiring, policy: PolicyConfig, vm: str, progress: Progress) -> None:
    result = take_point(wiring, vm, BackupOptions.of(policy, vm), progress)
    _log_point(vm, result.point)
    if result.cleanup is not None:
        raise result.cleanup


def _log_point(vm: str, point: Point) -> None:
    manifest = point.manifest
    log.info(
        "%s: point %s, %s, %d bytes stored",
        vm,
        manifest.id,
        manifest.consistency,
        manifest.stored_bytes,
    )
    for warning in manifest.warnings:
        log.warning("%s: %s", vm, warning)


def _drill(wiring: Wiring, _policy: PolicyConfig, vm: str, progress: Progress) -> None:
    result = drill_latest(wiring, vm, progress)
    if result.passed:
        log.info("%s: drill passed, RTO %.0f s", vm, result.rto_seconds or 0.0)
    else:
        log.error("%s: drill failed: %s", vm, result.failure or "a check did not pass")
