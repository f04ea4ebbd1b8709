"""What a collector must know before it condemns or deletes anything, in the order of the protocol.

docs/FORMAT.md, "Rules for a collector", and docs/adr/027-collection.md: the order of the listings
is what data is safe by. Nothing is written here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from drvm.core.errors import DamageFound, ObjectMissing, TamperingFound
from drvm.core.progress import NoProgress, Progress, Trace, no_trace
from drvm.core.threads import mapped
from drvm.repository.generations import Decided, Generation, Status
from drvm.repository.layout import LOOSE, pack_object
from drvm.repository.listings import condemned_packs, listed_packs
from drvm.repository.need import Need
from drvm.repository.packs import BlobRef
from drvm.repository.repository import Repository
from drvm.store.base import ObjectInfo

_MAX_REASONS = 3

Attempts = Sequence[tuple[Generation, Decided]]


@dataclass(frozen=True, slots=True)
class Damaged:
    """A generation whose packs are not all known, or not all there. ``good``: its final says so;
    a pending one will be given up one day."""

    generation: Generation
    good: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """``now``: the store's time, from before anything was listed. ``condemned``: tombstones.
    ``needed``: by all generations that are not given up; it is only complete where nothing is
    ``damaged``. ``index_objects`` were listed before ``packs``: what they tell of was there.
    ``probes``: what comes and goes, leases too. ``tampering``: somebody overwrote or deleted
    objects of a store that keeps versions."""

    now: dt.datetime
    index_objects: tuple[bytes, ...]
    condemned: frozenset[bytes]
    packs: Mapping[bytes, ObjectInfo]
    attempts: Attempts
    needed: frozenset[bytes]
    damaged: tuple[Damaged, ...]
    probes: tuple[ObjectInfo, ...] = ()
    tampering: TamperingFound | None = None

    def without_damaged(self) -> Survey:
        """Nothing is known of damaged generations, and nothing is done for them."""
        bad = {damaged.generation for damaged in self.damaged}
        return replace(self, attempts=[a for a in self.attempts if a[0] not in bad])

    def whole(self) -> frozenset[tuple[str, str]]:
        """(VM's UUID, id) of the points that are whole by some generation."""
        bad = {damaged.generation for damaged in self.damaged}
        return frozenset(
            (generation.vm_uuid, generation.point_id)
            for generation, decided in self.attempts
            if decided.status is Status.OK and generation not in bad
        )


def _tampering(repository: Repository) -> TamperingFound | None:
    try:
        repository.check_untouched()
    except TamperingFound as error:
        return error
    return None


class _Found(NamedTuple):
    attempts: Attempts
    needed: frozenset[bytes]
    damaged: tuple[Damaged, ...]


def survey(
    repository: Repository,
    now: dt.datetime,
    trace: Trace = no_trace,
    progress: Progress | None = None,
) -> Survey:
    """Raises the store's errors, of any listing above all: then nothing is known."""
    progress = progress or NoProgress()
    store = repository.store
    progress.stage("listing the repository")
    probes = tuple(info for prefix in LOOSE for info in store.list(prefix))
    index_objects = tuple(repository.catalog.index_objects())
    condemned = condemned_packs(store)
    trace("tombstones-listed")
    packs = listed_packs(store)
    trace("packs-listed")
    generations = repository.generations
    listed = generations.listed()
    trace("points-listed")
    progress.stage(f"reading the finals of {len(listed)} points")
    attempts = [*zip(listed, mapped(generations.decided, listed), strict=True)]
    trace("finals-read")
    progress.stage("reading what the points need")
    found = _Needs(repository, packs).of(attempts)
    repository.check_is_there()
    return Survey(now, index_objects, condemned, packs, *found, probes, _tampering(repository))


class _Needs:
    """``listed``: the packs that are there. A pack that is not listed may have come since."""

    def __init__(self, repository: Repository, listed: Iterable[bytes]) -> None:
        self._repository = repository
        self._listed = frozenset(listed)
        self._unread: set[Generation] = set()
        self._ended: set[Generation] = set()
        self._missing: dict[bytes, bool] = {}

    def of(self, attempts: Attempts) -> _Found:
        """The good ones come first: what only the others lack is no damage."""
        good = [attempt for attempt in attempts if attempt[1].status is Status.OK]
        others = [a for a in attempts if a[1].status in (Status.PENDING, Status.UNREADABLE)]
        need = self._repository.generations.need()
        self._add(need, good)
        new = sorted(need.needed - self._listed)
        lost = {name for name, gone in zip(new, mapped(self._is_missing, new), strict=True) if gone}
        self._add(need, others)
        lost |= need.unread.keys()
        damaged = []
        for attempt in self._concerned([*good, *others], lost):
            needed, reasons = self._judge(*attempt, lost)
            need.needed |= needed  # read now, though it could not be before
            if reasons:
                damaged.append(Damaged(attempt[0], attempt[1].status is Status.OK, reasons))
        there = [attempt for attempt in attempts if attempt[0] not in self._ended]
        return _Found(there, frozenset(need.needed), tuple(damaged))

    def _concerned(self, attempts: Attempts, lost: set[bytes]) -> list[tuple[Generation, Decided]]:
        """Those that can't be read, or need what is lost. What points share is looked at once."""
        known: dict[BlobRef, int] = {}

        def needs(attempt: tuple[Generation, Decided]) -> bool:
            generation, decided = attempt
            if generation in self._unread:
                return True
            try:
                manifest = self._repository.generations.manifest(
                    generation, decided.manifest_sha256
                )
                maps = map(self._repository.disk_map, manifest.streams)
                return any(blob.ref().pack in lost for blob in manifest.blobs()) or any(
                    disk_map.fold(lambda name: name in lost, known) for disk_map in maps
                )
            except (ObjectMissing, DamageFound):
                return True

        if not lost:
            return [attempt for attempt in attempts if attempt[0] in self._unread]
        found = zip(attempts, mapped(needs, attempts), strict=True)
        return [attempt for attempt, is_concerned in found if is_concerned]

    def _add(self, need: Need, attempts: Attempts) -> None:
        for (generation, _), problem in zip(
            attempts, mapped(lambda attempt: self._read(need, *attempt), attempts), strict=True
        ):
            if problem:
                self._unread.add(generation)

    def _read(self, need: Need, generation: Generation, decided: Decided) -> str:
        """Why it can't be read. One that was ended since it was listed needs nothing; that an
        object was not found once is no proof of it."""
        generations = self._repository.generations
        try:
            manifest = generations.manifest(generation, decided.manifest_sha256)
        except ObjectMissing as error:
            mine = generations.of(generation.vm_uuid, generation.point_id)
            if any(one.generation == generation.generation for one in mine):
                return str(error)
            self._ended.add(generation)
            return ""
        except DamageFound as error:
            return str(error)
        need.add(manifest)
        return ""

    def _judge(
        self, generation: Generation, decided: Decided, lost: set[bytes]
    ) -> tuple[set[bytes], tuple[str, ...]]:
        """What it needs, and what is wrong with it. It is looked at by itself, for nodes that
        points share were looked at once. A pending one may lack packs: its writer will find that
        out. At last it must still be there: the packs of a point that was ended may be gone."""
        good = decided.status is Status.OK
        need = self._repository.generations.need()
        problem = self._read(need, generation, decided)
        reasons = [problem] if problem else []
        reasons += [why for name, why in need.unread.items() if good or not self._is_missing(name)]
        if good:
            gone = sorted(name for name in need.needed & lost if self._is_missing(name))
            reasons += [f"pack {name.hex()} is missing" for name in gone]
        if reasons:
            try:
                self._repository.store.head(generation.name)
            except ObjectMissing:
                self._ended.add(generation)
                reasons = []
        more = len(reasons) - _MAX_REASONS
        if more > 0:
            reasons[_MAX_REASONS:] = [f"and {more} more"]
        return need.needed, tuple(reasons)

    def _is_missing(self, name: bytes) -> bool:
        """Asked once more, each once: listings are older than points that were made meanwhile."""
        if name not in self._missing:
            try:
                self._repository.store.head(pack_object(name))
            except ObjectMissing:
                self._missing[name] = True
            else:
                self._missing[name] = False
        return self._missing[name]
