"""Upkeep that the command line and the daemon share."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from dataclasses import replace

from drvm.config.policies import PolicyConfig
from drvm.core.clock import rfc3339
from drvm.core.errors import TamperingFound, UnknownVm, UsageError
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.text import printable
from drvm.repository.checks import Share
from drvm.repository.layout import WRITTEN_ONCE
from drvm.repository.pins import Pin
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.snapshot.imagefiles import ImageFilesEngine
from drvm.store.first_versions import FirstVersions, Later
from drvm.store.probe import store_time
from drvm.upkeep.check import CheckResult, plan_check, run_check
from drvm.upkeep.gc import Collected, GcPlan, GcRules, plan_gc, run_gc
from drvm.upkeep.locks import LockPlan, plan_locks, run_locks
from drvm.upkeep.prune import PrunePlan, plan_prune
from drvm.upkeep.repair import Repairs, Tools, run_repair
from drvm.upkeep.retention import NO_RULES, SETTLED, Now, Rules
from drvm.upkeep.retire import Retired, RetirePlan, RetireRules, plan_retire, run_retire
from drvm.upkeep.survey import Survey, survey
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import Look, look_at_all, machines, point_policies
from drvm.wiring.selection import names_suffice


def rules_of(policy: PolicyConfig | None, doubt: str = "") -> Rules:
    if doubt:
        return Rules(doubt=doubt)
    if policy is None:
        return NO_RULES
    return Rules(
        last=policy.keep_last or 0,
        hourly=policy.keep_hourly or 0,
        daily=policy.keep_daily or 0,
        weekly=policy.keep_weekly or 0,
        monthly=policy.keep_monthly or 0,
        yearly=policy.keep_yearly or 0,
        within_s=policy.keep_within_s or 0.0,
        time_zone=policy.time_zone,
    )


def plan_prune_of(
    wiring: Wiring,
    vms: tuple[str, ...] = (),
    *,
    write: bool = True,
    settled: dt.timedelta = SETTLED,
) -> PrunePlan:
    """What the policies remove, of these machines (by name or UUID) or of all.

    The store's time is asked for by an object that comes and goes; without ``write`` it is guessed
    by its youngest final, which finds only a clock of ours that is behind. Raises ``UnknownVm``.
    """
    repository = wiring.repository()
    listing = repository.points()
    wanted = listing.points if not vms else [p for p in listing.points if _is_of(p, *vms)]
    for vm in vms:
        if not any(_is_of(point, vm) for point in wanted):
            raise UnknownVm(
                f"there is no point of a VM {printable(vm, 80)!r}",
                hint="drvm points lists those that there are",
            )
    host_now = wiring.clock.now()
    if write:
        store_now = store_time(repository.store)
    else:
        decided = repository.final_times().values()
        store_now = max((host_now, *itertools.chain.from_iterable(decided)))
    return plan_prune(
        repository,
        Listing(tuple(wanted), listing.problems),
        _rules_of_points(wiring),
        Now(host_now, store_now),
        settled,
    )


def _rules_of_points(wiring: Wiring) -> Callable[[Point], Rules]:
    """Hosts are only asked where names don't suffice. Where one of them does not answer, or nobody
    can tell for another reason which rules are meant, the rules keep all."""
    policies = wiring.settings.policies
    look = Look(()) if names_suffice(policies) else look_at_all(wiring.hosts(), policies)
    chosen = point_policies(wiring, look)

    def rules(point: Point) -> Rules:
        choice = chosen.of(point.manifest)
        return rules_of(choice.policy, choice.doubt)

    return rules


def lengthen_locks(
    wiring: Wiring, progress: Progress, trace: Trace = no_trace, *, dry_run: bool = False
) -> tuple[LockPlan, int]:
    """Lock anew what staying points need; the plan, and how many locks were lengthened.

    Raises ``UsageError`` where nothing is to be locked, and ``TamperingFound`` only afterwards:
    where somebody changed objects, all points are locked anew, and none is let go.
    """
    repository = wiring.repository()
    rule, store = wiring.lock_rule, repository.store
    if rule is None or not isinstance(store, FirstVersions):
        raise UsageError(
            "no objects are locked here" if rule is None else "this bucket keeps no versions",
            hint="set repository.object_lock in the config, and see docs/S3.md for the bucket",
        )
    pruning = plan_prune_of(wiring, write=False)
    let_go = () if pruning.refusal is not None else (*pruning.going, *pruning.held)
    staying = [point for point in repository.points().points if point not in let_go]
    now = wiring.clock.now() if dry_run else store_time(store)
    plan = plan_locks(repository, store, staying, rule, now, progress)
    lengthened = 0 if dry_run else run_locks(store, plan, rule, progress, trace)
    if isinstance(pruning.refusal, TamperingFound):
        raise pruning.refusal
    return plan, lengthened


def later_versions(wiring: Wiring) -> tuple[FirstVersions, tuple[Later, ...]]:
    """What somebody did to whatever raises an alarm. Raises ``UsageError`` where no versions are
    kept."""
    store = wiring.repository().store
    if not isinstance(store, FirstVersions):
        raise UsageError("this repository keeps no versions", hint="docs/S3.md says how it would")
    return store, tuple(later for prefix in WRITTEN_ONCE for later in store.later(prefix))


def _is_of(point: Point, *vms: str) -> bool:
    return point.manifest.vm in vms or point.manifest.vm_uuid in vms


def gone_points(wiring: Wiring, points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points of machines that are on none of the hosts any more; points of image files never
    were. Raises ``HostUnreachable``: a host that does not answer may have them."""
    there = {domain.uuid for _, domain in machines(wiring.hosts())}
    return tuple(
        point
        for point in points
        if point.manifest.vm_uuid not in there and point.manifest.engine != ImageFilesEngine.name
    )


def pin_point(wiring: Wiring, point: Point, note: str, trace: Trace = no_trace) -> Pin:
    pin = Pin(note, rfc3339(wiring.clock.now()), wiring.writer)
    wiring.repository().pin(point, pin, trace)
    return pin


def gc_rules_of(wiring: Wiring) -> GcRules:
    gc = wiring.settings.gc
    return GcRules(dt.timedelta(seconds=gc.grace_s), dt.timedelta(seconds=gc.give_up_after_s))


def plan_gc_of(
    wiring: Wiring,
    rules: GcRules,
    *,
    write: bool = True,
    trace: Trace = no_trace,
    progress: Progress | None = None,
) -> tuple[Survey, GcPlan]:
    """Looks through the whole repository. The store's time is asked for as in ``plan_prune_of``;
    without ``write`` it is guessed."""
    repository = wiring.repository()
    host_now = wiring.clock.now()
    store_now = store_time(repository.store) if write else host_now
    found = survey(repository, store_now, trace, progress)
    if not write:
        stored = (generation.stored for generation, _ in found.attempts)
        found = replace(found, now=max((host_now, *stored)))
    return found, plan_gc(found, Now(host_now, found.now), rules)


def plan_retire_of(
    wiring: Wiring, found: Survey, most_bytes: int | None, progress: Progress | None = None
) -> RetirePlan:
    """``most_bytes`` as the config says if it is ``None``; 0: nothing is retired."""
    most_bytes = wiring.settings.gc.max_rewrite_bytes if most_bytes is None else most_bytes
    if most_bytes == 0:
        return RetirePlan()
    return plan_retire(wiring.repository(), found, RetireRules(most_bytes), progress)


def check_of(
    wiring: Wiring,
    share: Share | None,
    progress: Progress,
    trace: Trace = no_trace,
    *,
    write: bool = True,
) -> CheckResult:
    """Check the repository, and read a share of its data."""
    repository = wiring.repository()
    progress.stage("reading the manifests of all points")
    plan = plan_check(repository, share, wiring.clock.now())
    return run_check(
        repository, plan, progress, wiring.clock, wiring.writer, write=write, trace=trace
    )


def collect(
    wiring: Wiring, progress: Progress, trace: Trace = no_trace
) -> tuple[Collected, Retired]:
    """A whole ``drvm gc``, as the config says. Raises where it is refused, having done nothing."""
    done, retired = Collected(), Retired()
    found, plan = plan_gc_of(wiring, gc_rules_of(wiring), trace=trace, progress=progress)
    run_gc(wiring.repository(), plan, done, trace, progress)
    retire = plan_retire_of(wiring, found, None, progress)
    run_retire(
        wiring.repository(), retire, retired, level=wiring.level, trace=trace, progress=progress
    )
    return done, retired


def repair_hits(
    wiring: Wiring,
    result: CheckResult,
    other: Repository | None,
    progress: Progress,
    trace: Trace = no_trace,
) -> Repairs:
    """Repair what a check found, from this repository and from ``other``."""
    bad = frozenset(pack.name for pack in result.bad_packs)
    tools = Tools(wiring.writer, wiring.level, wiring.clock, progress, trace)
    return run_repair(wiring.repository(), result.hits, bad, other, tools)
