"""Checking a repository: is everything there, and is it what was written?

Three depths. The listing: every good point has its manifest, its disk maps, and every pack that
it needs. The data: packs of an arc are read, decrypted, decompressed and named anew, and the disk
maps in them are compared with their digests. Without a key: packs by their own checksums.

What is found is said as what it costs: which points, which of their disks, which bytes. Bad packs
are set aside, so that the next backups heal what they still have. Nothing is deleted.
docs/adr/028-check.md.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import StoreRefused
from drvm.core.progress import Progress, Trace, no_trace
from drvm.repository import packcheck
from drvm.repository.checks import (
    NOTHING,
    WHOLE,
    Arc,
    CheckRecord,
    History,
    Share,
    arc_fields,
    oldest_read,
)
from drvm.repository.listings import condemned_packs, listed_packs
from drvm.repository.points import Listing
from drvm.repository.repository import Repository
from drvm.store.base import ObjectInfo, Store
from drvm.upkeep.check_objects import Finds, look_at_names, look_at_objects
from drvm.upkeep.check_packs import CheckedPacks
from drvm.upkeep.check_points import PointCheck, PointHit, without_manifest


@dataclass(frozen=True, slots=True)
class BadPack:
    """``absent`` packs are told of only where a point needs them."""

    name: bytes
    reason: str
    absent: bool
    set_aside: bool


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What is there, and what of it will be read: the packs in ``arc``, in order.

    The points were listed before the packs: whatever a good point needs was there by then.
    """

    listing: Listing
    listed: Mapping[bytes, ObjectInfo]
    condemned: frozenset[bytes]
    arc: Arc
    rotates: bool
    reading: tuple[bytes, ...]
    finds: Finds
    history: History | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``hits``: the points that are damaged; ``finds``: what else was found, harmless to points.
    ``oldest_read``, ``never_read``: of the packs, by all runs on record and this one. ``passing``:
    packs that were bad once and good when read again."""

    points: int
    packs: int
    packs_bytes: int
    read_packs: int
    read_bytes: int
    leaves: int
    hits: tuple[PointHit, ...]
    bad_packs: tuple[BadPack, ...]
    finds: Finds
    passing: int = 0
    not_set_aside: str = ""
    not_recorded: str = ""
    oldest_read: dt.datetime | None = None
    never_read: int | None = None

    @property
    def damaged(self) -> bool:
        return bool(self.hits or self.bad_packs or self.finds.damage)

    @property
    def verdict(self) -> str:
        """The damage in a line."""
        parts = []
        if self.hits:
            lost = sum("manifest" in hit.parts for hit in self.hits)
            parts.append(f"{len(self.hits)} of {self.points + lost} points are damaged")
        if self.bad_packs:
            parts.append(f"{len(self.bad_packs)} packs are bad")
        if self.finds.damage:
            parts.append(f"{len(self.finds.damage)} other objects are damaged or lost")
        return "; ".join(parts)

    @property
    def warned(self) -> bool:
        doubts = self.passing or self.not_set_aside or self.not_recorded
        return bool(doubts or self.finds.harmless or self.finds.unfinished)


def plan_check(repository: Repository, share: Share | None, now: dt.datetime) -> CheckPlan:
    """Lists, and reads what is small: manifests, finals, the records of earlier checks. With a
    ``share`` of the data."""
    history = repository.checks.history()
    arc = share.arc(history.last_end) if share is not None else NOTHING
    finds = look_at_names(repository.store, now)
    listing = repository.points()
    finds = replace(finds, damage=finds.damage + listing.problems)
    plan = _plan(repository.store, listing, arc, finds)
    return replace(plan, rotates=share is not None and share.rotates, history=history)


def plan_check_without_key(store: Store, share: Share | None, now: dt.datetime) -> CheckPlan:
    """Of the packs alone. All are read where no ``share`` is given."""
    arc = share.arc(0) if share is not None else WHOLE
    return _plan(store, Listing((), ()), arc, look_at_names(store, now))


def run_check_without_key(
    store: Store, plan: CheckPlan, progress: Progress, *, set_aside: bool, trace: Trace = no_trace
) -> CheckResult:
    packs = CheckedPacks(
        store, plan.listed, plan.condemned, packcheck.examine, trace, set_aside=set_aside
    )
    packs.read(plan.reading, progress)
    for name in sorted(packs.implausible):
        packs.inspect(name)
    return _result(plan, packs, (), 0)


def run_check(
    repository: Repository,
    plan: CheckPlan,
    progress: Progress,
    clock: Clock,
    host: str,
    *,
    write: bool,
    trace: Trace = no_trace,
) -> CheckResult:
    """With ``write`` bad packs are set aside, and what was read is put on record.

    A crash leaves some bad packs set aside and no record: the same arc is read again.
    """
    began_s = clock.monotonic_s()
    packs = CheckedPacks(
        repository.store,
        plan.listed,
        plan.condemned,
        repository.checks.examine,
        trace,
        set_aside=write,
    )
    packs.read(plan.reading, progress)
    for name in sorted(packs.implausible):
        packs.inspect(name)
    looking = PointCheck(repository, packs, plan.arc, progress)
    hits = looking.all(plan.listing.points)
    hits += without_manifest(plan.listing)
    finds = look_at_objects(repository, plan.arc, plan.finds)
    result = replace(_result(plan, packs, hits, looking.maps.leaves), finds=finds)
    if not plan.arc.length:
        return _with_times(result, plan, None)
    record = CheckRecord(
        **arc_fields(plan.arc),
        rotates=plan.rotates,
        seconds=round(clock.monotonic_s() - began_s, 3),
        packs=result.read_packs,
        read_bytes=result.read_bytes,
        damaged=len(result.bad_packs),
        created=rfc3339(clock.now()),
        host=host,
    )
    if write:
        try:
            repository.checks.record(record, trace)
        except StoreRefused as error:
            result = replace(result, not_recorded=error.message)
    return _with_times(result, plan, clock.now())


def _plan(store: Store, listing: Listing, arc: Arc, finds: Finds) -> CheckPlan:
    condemned = condemned_packs(store)
    listed = listed_packs(store)
    here = [name for name in listed if name in arc and name not in condemned]
    here.sort(key=arc.distance)
    return CheckPlan(listing, MappingProxyType(listed), condemned, arc, False, tuple(here), finds)


def _result(
    plan: CheckPlan, packs: CheckedPacks, hits: tuple[PointHit, ...], leaves: int
) -> CheckResult:
    bad = tuple(
        BadPack(name, fault.reason, fault.absent, name in packs.aside)
        for name, fault in sorted(packs.faults.items())
        if hits or not fault.absent
    )
    return CheckResult(
        points=len(plan.listing.points),
        packs=len(plan.listed),
        packs_bytes=sum(info.size_bytes for info in plan.listed.values()),
        read_packs=len(plan.reading),
        read_bytes=packs.read_bytes,
        leaves=leaves,
        hits=hits,
        bad_packs=bad,
        finds=plan.finds,
        passing=packs.passing,
        not_set_aside=packs.refused,
    )


def _with_times(result: CheckResult, plan: CheckPlan, now: dt.datetime | None) -> CheckResult:
    """``now``: if packs of the arc were read a moment ago."""
    assert plan.history is not None
    others = (
        (name, info.modified)
        for name, info in plan.listed.items()
        if now is None or name not in plan.arc
    )
    oldest, never = oldest_read(plan.history, others)
    if now is not None and plan.reading and oldest is None:
        oldest = now
    return replace(result, oldest_read=oldest, never_read=never)
