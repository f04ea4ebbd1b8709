"""Lengthening Object Locks: what staying points need is locked anew before its lock ends.

Planned first, as a value that can be shown. A lock is only ever lengthened, so a run that ends
anywhere has done some of the work, and the next goes on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from drvm.core.errors import DamageFound, ObjectMissing
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.threads import mapped
from drvm.repository.layout import CONFIG, final_object, pack_object, point_object, slot_object
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.store.first_versions import FirstVersions
from drvm.store.history import LockRule


@dataclass(frozen=True, slots=True)
class LockPlan:
    """``ending``: objects that are locked for less than half of the rule's days, or not at all;
    they get locked until ``until``. ``absent``: what points need and is not there; ``unread``: why
    it is not known what else they need."""

    points: int
    objects: int
    ending: tuple[str, ...]
    absent: tuple[str, ...]
    unread: tuple[str, ...]
    until: dt.datetime

    @property
    def damage(self) -> DamageFound | None:
        """What to raise when all else is locked."""
        if not self.absent and not self.unread:
            return None
        said = [f"{len(self.absent)} objects that points need are not there"] if self.absent else []
        return DamageFound(
            "; ".join((*said, *self.unread)), hint="what else points need is locked; drvm check"
        )


def needed_objects(
    repository: Repository, points: Iterable[Point]
) -> tuple[set[str], tuple[str, ...]]:
    """(the names of all that a restore of the points reads, why some of it can't be told).

    Of the key slots those that stay: one that is to go would never go, and what somebody put there
    need not stay. Where none would be left (who can only write can say so of all) all of them."""
    slots = repository.keyring.slots()
    staying = [slot for slot in slots if slot.state == "good"] or slots
    names = {CONFIG, *(slot_object(slot.id) for slot in staying)}
    need = repository.generations.need()
    for point in points:
        names.add(point_object(point.manifest.vm_uuid, point.id, point.generation))
        names.add(final_object(point.id, point.generation))
        need.add(point.manifest)
    return names | {pack_object(pack) for pack in need.needed}, tuple(need.unread.values())


def plan_locks(
    repository: Repository,
    store: FirstVersions,
    points: Sequence[Point],
    rule: LockRule,
    now: dt.datetime,
    progress: Progress,
) -> LockPlan:
    """One request for each object that the points need. ``now`` is the store's time. Raises the
    store's errors."""
    progress.stage(f"finding what {len(points)} points need")
    needed, unread = needed_objects(repository, points)
    names = sorted(needed)
    soon = now + dt.timedelta(days=rule.days) / 2
    progress.stage(f"looking at the locks of {len(names)} objects")

    def ask(name: str) -> str:
        try:
            until = store.retained_until(name)
        except ObjectMissing:
            return "absent"
        return "ending" if until is None or until < soon else "locked"

    states = dict(zip(names, _each(ask, names, progress), strict=True))
    return LockPlan(
        points=len(points),
        objects=len(names),
        ending=tuple(name for name in names if states[name] == "ending"),
        absent=tuple(name for name in names if states[name] == "absent"),
        unread=unread,
        until=rule.until(now),
    )


def run_locks(
    store: FirstVersions,
    plan: LockPlan,
    rule: LockRule,
    progress: Progress,
    trace: Trace = no_trace,
) -> int:
    """One request for each lock that is lengthened; how many there were. What was collected
    meanwhile needs none."""
    progress.stage(f"locking {len(plan.ending)} objects")

    def lengthen(name: str) -> str:
        try:
            store.retain(name, rule.mode, plan.until)
        except ObjectMissing:
            return ""
        trace("lock-lengthened")
        return name

    return sum(bool(name) for name in _each(lengthen, plan.ending, progress))


def _each(action: Callable[[str], str], names: Sequence[str], progress: Progress) -> Iterator[str]:
    for done in mapped(action, names):
        progress.advance(0)  # where a stop arrives
        yield done
