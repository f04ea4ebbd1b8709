"""Collecting: packs that no point needs are condemned by one run and deleted by a later one.

A run surveys the repository in the order of the protocol (drvm/upkeep/survey.py), plans, and does.
It keeps nothing in mind: the next run begins anew from what there is, and what was done stays done.
Any number of collectors, writers and prunes may be at work, on any hosts: why nothing is lost is in
docs/adr/027-collection.md, what a crash leaves at each step in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from drvm.core.errors import DamageFound, RepositoryError, TamperingFound, UsageError
from drvm.core.progress import NoProgress, Progress, Trace, no_trace
from drvm.core.text import printable
from drvm.core.threads import mapped
from drvm.repository.generations import Generation, Status
from drvm.repository.layout import index_object, pack_object, tombstone
from drvm.repository.points import condemn, end_point
from drvm.repository.repository import Repository
from drvm.repository.select import MIN_PREFIX
from drvm.store.first_versions import is_locked
from drvm.upkeep.retention import SETTLED, Now
from drvm.upkeep.survey import Damaged, Survey

PROBES_KEPT = dt.timedelta(days=1)
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class GcRules:
    """All by the store's time. ``grace``: no younger pack is condemned. ``give_up``: a writer
    whose manifest is older and has no final is dead.

    ``settled``: no younger pack is deleted, as long as any request lives that could bring it back;
    nothing but tests may change it."""

    grace: dt.timedelta = dt.timedelta(days=1)
    give_up: dt.timedelta = dt.timedelta(days=7)
    settled: dt.timedelta = SETTLED


@dataclass(frozen=True, slots=True)
class Doomed:
    """A pack that no point needs. ``size_bytes``: 0 where only its tombstone is left."""

    name: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GcPlan:
    """``delete``: condemned before, and still not needed. ``waiting``: not needed, and too young to
    be condemned or deleted. ``give_up``: generations of dead writers. ``clear``: manifests of
    generations that were given up. ``index_objects``: those that may tell of nothing any more but
    ``left`` packs. ``unknown``: of ``give_up``, those of which nobody knows what they need.
    ``damaged``, ``clock`` and ``tampering``: why nothing may be collected at all. ``now``: the
    store's time, by which locks are judged."""

    now: dt.datetime
    packs: int
    packs_bytes: int
    needed_bytes: int
    points: int
    condemn: tuple[Doomed, ...] = ()
    delete: tuple[Doomed, ...] = ()
    waiting: tuple[Doomed, ...] = ()
    give_up: tuple[Generation, ...] = ()
    clear: tuple[Generation, ...] = ()
    index_objects: tuple[bytes, ...] = ()
    probes: tuple[str, ...] = ()
    left: frozenset[bytes] = frozenset()
    unknown: frozenset[Generation] = frozenset()
    damaged: tuple[Damaged, ...] = ()
    clock: str | None = None
    tampering: TamperingFound | None = None

    @property
    def refused(self) -> bool:
        return bool(self.damaged or self.clock or self.tampering)


@dataclass(slots=True)
class Collected:
    """What became true so far; a run that fails has done at least this. ``locked``: packs that
    would have been deleted but for Object Lock."""

    condemned: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    locked: int = 0
    given_up: int = 0
    cleared: int = 0
    index_objects: int = 0
    probes: int = 0


def plan_gc(found: Survey, now: Now, rules: GcRules) -> GcPlan:
    """Pure. ``now.store`` is the survey's."""

    def older(moment: dt.datetime, than: dt.timedelta) -> bool:
        return found.now - moment >= than

    unneeded = found.packs.keys() - found.needed
    condemn: list[Doomed] = []
    delete: list[Doomed] = []
    waiting: list[Doomed] = []
    for name in sorted(unneeded | found.condemned - found.needed):
        info = found.packs.get(name)
        doomed = Doomed(name, info.size_bytes if info is not None else 0)
        if name in found.condemned:
            gone_or_old = info is None or older(info.modified, rules.settled)
            (delete if gone_or_old else waiting).append(doomed)
        else:
            assert info is not None
            (condemn if older(info.modified, rules.grace) else waiting).append(doomed)
    give_up = tuple(
        generation
        for generation, decided in found.attempts
        if decided.status is Status.PENDING and older(generation.stored, rules.give_up)
    )
    clear = tuple(
        generation
        for generation, decided in found.attempts
        if decided.status is Status.ABORTED and older(generation.stored, rules.settled)
    )
    whole, dead = found.whole(), frozenset(give_up)
    damaged = tuple(
        damaged
        for damaged in found.damaged
        if (g := damaged.generation) not in dead and (g.vm_uuid, g.point_id) not in whole
    )
    sizes = {name: info.size_bytes for name, info in found.packs.items()}
    plan = GcPlan(
        now=found.now,
        packs=len(sizes),
        packs_bytes=sum(sizes.values()),
        needed_bytes=sum(sizes.get(name, 0) for name in found.needed),
        points=len({g.point_id for g, d in found.attempts if d.status is Status.OK}),
        damaged=damaged,
        clock=now.problem,
        tampering=found.tampering,
    )
    if plan.refused:
        return plan
    return replace(
        plan,
        condemn=tuple(condemn),
        delete=tuple(delete),
        waiting=tuple(waiting),
        give_up=give_up,
        clear=clear,
        index_objects=found.index_objects,
        probes=tuple(p.name for p in found.probes if older(p.modified, PROBES_KEPT)),
        left=frozenset(sizes) - {doomed.name for doomed in delete},
        unknown=frozenset(one.generation for one in found.damaged),
    )


def run_gc(
    repository: Repository,
    plan: GcPlan,
    done: Collected,
    trace: Trace = no_trace,
    progress: Progress | None = None,
) -> None:
    """Raises ``DamageFound`` where the plan refuses, having done nothing; and the store's errors,
    with ``done`` telling what was done before."""
    progress = progress or NoProgress()
    if plan.refused:
        raise refusal(plan)
    store = repository.store
    for generation in plan.give_up:
        if repository.generations.give_up(generation, trace):
            done.given_up += 1
        elif generation in plan.unknown:
            raise RepositoryError(
                f"the writer of point {generation.point_id} came back to life meanwhile",
                hint="run drvm gc again",
            )
    for doomed in plan.condemn:
        condemn(store, doomed.name)
        trace("pack-condemned")
        done.condemned += 1
    repository.catalog.forget(frozenset(doomed.name for doomed in plan.delete))
    progress.stage("deleting packs", sum(doomed.size_bytes for doomed in plan.delete))
    for doomed in plan.delete:
        if is_locked(store, pack_object(doomed.name), plan.now):
            done.locked += 1
            continue
        store.delete(pack_object(doomed.name))
        trace("pack-deleted")
        store.delete(tombstone(doomed.name))
        trace("tombstone-removed")
        done.deleted += 1
        done.deleted_bytes += doomed.size_bytes
        progress.advance(doomed.size_bytes)
    for name in _hollow(repository, plan):
        store.delete(index_object(name))
        trace("index-object-removed")
        done.index_objects += 1
    for generation in plan.clear:
        if is_locked(store, generation.name, plan.now):
            continue
        store.delete(generation.name)
        trace("aborted-manifest-removed")
        done.cleared += 1
    for probe in plan.probes:
        store.delete(probe)
        trace("probe-removed")
        done.probes += 1


def refusal(plan: GcPlan) -> RepositoryError:
    """Why nothing is collected, and what to do."""
    if plan.tampering is not None:
        return plan.tampering
    if plan.clock is not None:
        return RepositoryError(
            f"nothing may be collected: {plan.clock}",
            hint="set this host's clock by NTP; drvm doctor compares it with the store's",
        )
    ids = sorted({damaged.generation.point_id for damaged in plan.damaged})
    shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if ids[_SHOWN:] else "")
    return DamageFound(
        f"nothing may be collected: of {len(ids)} points it is not known what they need, or it is"
        f" not there: {shown}",
        hint="drvm check names the damage: put back what is lost, or end such a point for ever by"
        " drvm gc --forget-damaged POINT",
    )


def forget_damaged(
    repository: Repository,
    plan: GcPlan,
    wanted: Sequence[str],
    trace: Trace = no_trace,
    *,
    dry_run: bool = False,
) -> tuple[str, ...]:
    """End points that ``plan`` refuses for, named by their ids or how these begin; all or none. A
    survey made before knows nothing of that. Raises ``UsageError`` for any other, and for pinned
    ones; and what ``plan`` refuses for beside them."""
    if plan.tampering is not None or plan.clock is not None:
        raise refusal(plan)
    damaged = {d.generation.point_id: d.generation.vm_uuid for d in plan.damaged}
    chosen: dict[str, str] = {}
    for text in wanted:
        ids = [i for i in damaged if len(text) >= MIN_PREFIX and i.startswith(text)]
        if len(ids) != 1:
            raise UsageError(
                f"{printable(text, 80)!r} is not one of the points that can't be collected beside",
                hint=f"they are: {', '.join(sorted(damaged)[:_SHOWN])}" if damaged else "drvm gc",
            )
        if repository.is_pinned(ids[0]):
            raise UsageError(f"point {ids[0]} is pinned", hint="drvm unpin POINT first")
        chosen[ids[0]] = damaged[ids[0]]
    for point_id, vm_uuid in ({} if dry_run else chosen).items():
        end_point(repository.store, vm_uuid, point_id, trace)
    return tuple(chosen)


def _hollow(repository: Repository, plan: GcPlan) -> Iterator[bytes]:
    """Index objects that tell of no pack that is left. They are hints, and are looked at only
    where packs went."""
    names = plan.index_objects if plan.delete else ()
    for name, told in zip(names, mapped(repository.catalog.told_by, names), strict=True):
        if told is not None and told.isdisjoint(plan.left):
            yield name
