"""Removing points: by the rules of the policies, or because somebody names them.

Planned first, as a value that can be shown. A point ends by the delete of its manifest; its packs
are a collector's business. A crash at any step leaves each point ended or untouched.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from drvm.core.clock import parse_rfc3339, rfc3339
from drvm.core.errors import RepositoryError, TamperingFound
from drvm.core.progress import Trace, no_trace
from drvm.repository.listings import usable_packs
from drvm.repository.manifest import Manifest
from drvm.repository.packs import BlobRef
from drvm.repository.pins import Pin
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.upkeep.retention import SETTLED, Candidate, Decision, Now, Rules, decide


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """``decisions`` are shown; ``going`` are the points that they remove. ``problems``: damaged
    points, which count for nothing. ``refusal``: why nothing may be removed at all. ``held``: what
    no rule keeps, but a lock, the refusal, or somebody who writes it anew."""

    decisions: tuple[Decision, ...]
    going: tuple[Point, ...]
    problems: tuple[str, ...] = ()
    refusal: RepositoryError | None = None
    held: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Pruned:
    """``spared``: pinned since the plan was made."""

    ended: tuple[Point, ...]
    spared: tuple[Point, ...]


def plan_prune(
    repository: Repository,
    listing: Listing,
    rules: Callable[[Point], Rules],
    now: Now,
    settled: dt.timedelta = SETTLED,
) -> PrunePlan:
    """``rules``: those of a series, by its newest point. Only the points of ``listing`` are looked
    at.

    No point goes because of newer ones that were not looked at: whatever stays in its stead must
    be whole, with each pack that it needs in the store and none set aside. Raises the store's
    errors. Where somebody overwrote or deleted objects, ``refusal`` says so: nothing goes.
    """
    points = {point.id: point for point in listing.points}
    notes = pin_notes(repository.pins())
    known: dict[tuple[str, str, str], Rules] = {}

    def rules_for(one: Candidate) -> Rules:
        if one.series not in known:
            known[one.series] = rules(points[one.id])
        return known[one.series]

    decided = repository.final_times()
    candidates = {
        identity: candidate(point, decided[identity])
        for identity, point in points.items()
        if identity in decided
    }
    whole = _Wholeness(repository)
    while True:
        decisions = decide(candidates.values(), rules_for, notes, now, settled)
        losing = {decision.point.series for decision in decisions if not decision.kept}
        staying = (d.point for d in decisions if d.kept and d.point.sound)
        torn = [
            point
            for point in staying
            if point.series in losing and not whole.holds(points[point.id])
        ]
        if not torn:
            break
        candidates |= {point.id: replace(point, sound=False) for point in torn}
    refusal = _refusal(repository, now)
    wanted = [points[decision.point.id] for decision in decisions if not decision.kept]
    reasons = {point.id: _hold(repository, point, refusal, now, settled) for point in wanted}
    held = {identity: why for identity, why in reasons.items() if why}
    decisions = tuple(
        replace(decision, kept=True, reasons=(held[decision.point.id],))
        if decision.point.id in held
        else decision
        for decision in decisions
    )
    return PrunePlan(
        decisions,
        going=tuple(point for point in wanted if point.id not in held),
        problems=listing.problems,
        refusal=refusal,
        held=tuple(point for point in wanted if point.id in held),
    )


def _refusal(repository: Repository, now: Now) -> RepositoryError | None:
    """Why nothing may go at all."""
    if now.problem is not None:
        return RepositoryError(
            f"nothing may be removed: {now.problem}",
            hint="set this host's clock by NTP; drvm doctor compares it with the store's",
        )
    try:
        repository.check_untouched()
    except TamperingFound as error:
        return error
    return None


def _hold(
    repository: Repository,
    point: Point,
    refusal: RepositoryError | None,
    now: Now,
    settled: dt.timedelta,
) -> str | None:
    """Why a point stays that no rule keeps. ``settled`` is for all its generations, also those
    without a final, which have no say in ``decide``."""
    if refusal is not None:
        return "somebody changed objects: nothing goes"
    made = repository.generations.of(point.manifest.vm_uuid, point.id)
    if any(now.store - generation.stored < settled for generation in made):
        return "is being written anew"
    until = repository.locked_until(point)
    if until is not None and until > now.store:
        return f"locked until {rfc3339(until)}"
    return None


def run_prune(repository: Repository, going: Sequence[Point], trace: Trace = no_trace) -> Pruned:
    """End the points, the oldest first. Each is asked for pins once more, directly before."""
    ended, spared = [], []
    for point in going:
        if repository.is_pinned(point.id):
            spared.append(point)
            continue
        repository.end_point(point, trace)
        ended.append(point)
    return Pruned(tuple(ended), tuple(spared))


def candidate(point: Point, decided: Sequence[dt.datetime]) -> Candidate:
    """``decided``: when each of its generations was, by the store's time."""
    manifest = point.manifest
    return Candidate(
        id=point.id,
        vm=manifest.vm,
        vm_uuid=manifest.vm_uuid,
        host=manifest.host,
        created=parse_rfc3339(manifest.created),
        finished=parse_rfc3339(manifest.finished),
        first_stored=min(decided),
        stored=max(decided),
    )


def pin_notes(pins: Mapping[str, Iterable[Pin]]) -> dict[str, str]:
    """One text for each pinned point."""
    return {
        point_id: "; ".join(pin.note for pin in mine if pin.note) for point_id, mine in pins.items()
    }


class _Wholeness:
    """Whether points have all their packs, and none that a check set aside; each is asked for
    once, and so is what they share."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._usable: frozenset[bytes] | None = None
        self._known: dict[str, bool] = {}
        self._nodes: dict[BlobRef, int] = {}

    def holds(self, point: Point) -> bool:
        if point.id not in self._known:
            try:
                self._known[point.id] = not self._lacks(point.manifest)
            except RepositoryError:  # a metadata pack is damaged or lost
                self._known[point.id] = False
        return self._known[point.id]

    def _lacks(self, manifest: Manifest) -> bool:
        if self._usable is None:
            self._usable = usable_packs(self._repository.store)
        usable = self._usable
        maps = map(self._repository.disk_map, manifest.streams)
        return any(blob.ref().pack not in usable for blob in manifest.blobs()) or any(
            disk_map.fold(lambda name: name not in usable, self._nodes) for disk_map in maps
        )
