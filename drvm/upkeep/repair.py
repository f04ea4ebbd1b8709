"""Writing damaged points again, from wherever their blocks can still be had.

A point is repaired by a new generation of its own id, which needs none of the bad packs. Blocks
come from what is left of the bad packs, from other packs of the repository (the backups since have
stored anew what they needed of bad ones), from another generation, and from the twin of the point
in a second repository. Every leaf must have the digest that it had; where the disk map itself is
lost, the twin is copied back whole. A point is never removed: the damaged generation goes when a
whole one is good.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BLOCK_BYTES, Ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO
from drvm.core.clock import Clock
from drvm.core.errors import (
    DamageFound,
    DrvmError,
    Interrupted,
    ObjectMissing,
    StoreRefused,
    StoreUnreachable,
    UnknownPoint,
)
from drvm.core.progress import Progress, Trace
from drvm.repository.generations import Decided, Generation, Status
from drvm.repository.layout import final_object
from drvm.repository.leaf_reader import I64, LeafReader, Rows
from drvm.repository.manifest import Disk, StoredBlob
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.store.probe import store_time
from drvm.upkeep.agreement import agrees, blobs
from drvm.upkeep.check_points import PointHit
from drvm.upkeep.copy import CopyPlan, PlannedPoint, run_copy
from drvm.upkeep.retention import SETTLED
from drvm.upkeep.rewrite import rewrite_point

_DECIDED = (Status.OK, Status.UNREADABLE)
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Repaired:
    """``generation``: that is good now, if the point could be repaired; else ``reason`` says why
    not. ``left``: why the damaged generation is still there, beside the good one."""

    id: str
    generation: str = ""
    reason: str = ""
    left: str = ""


@dataclass(frozen=True, slots=True)
class Repairs:
    """``left``: why damaged generations of other points are still there, beside good ones."""

    points: tuple[Repaired, ...]
    left: tuple[str, ...]

    @property
    def failed(self) -> tuple[Repaired, ...]:
        return tuple(point for point in self.points if not point.generation)


@dataclass(frozen=True, slots=True)
class Tools:
    """``writer`` names this machine; ``level`` is zstd's."""

    writer: str
    level: int
    clock: Clock
    progress: Progress
    trace: Trace
    settled: dt.timedelta = SETTLED


def run_repair(
    repository: Repository,
    hits: Sequence[PointHit],
    bad: frozenset[bytes],
    other: Repository | None,
    tools: Tools,
) -> Repairs:
    """Repair what can be, in the order given; ``bad`` packs are relied on by nothing new.

    ``other``: a second repository with copies of the points. A crash leaves points repaired or as
    they were. Raises what the stores raise when they can't be reached; whatever else keeps a point
    from being repaired is told of it.
    """
    repairing = _Repairing(repository, hits, bad, other, tools)
    points = tuple(repairing.point(hit) for hit in hits)
    return Repairs(points, repairing.superseded())


class _Repairing:
    def __init__(
        self,
        repository: Repository,
        hits: Sequence[PointHit],
        bad: frozenset[bytes],
        other: Repository | None,
        tools: Tools,
    ) -> None:
        self._repository = repository
        self._bad = bad
        self._other = other
        self._tools = tools
        self._listing = repository.points()
        self._theirs = other.points() if other is not None else Listing((), ())
        self._hit = {hit.id for hit in hits}

    def point(self, hit: PointHit) -> Repaired:
        self._tools.progress.stage(f"repairing point {hit.id}")
        mine = _of(self._listing, hit)
        twin = _of(self._theirs, hit)
        reason = "its manifest is lost"
        made: Point | None = None
        if not self._repository.generations.of(hit.vm_uuid, hit.id):
            return Repaired(hit.id, reason="it was removed meanwhile")
        for attempt in (self._rewritten, self._written_as_another, self._copied_back):
            try:
                made = attempt(mine, twin)
            except (Interrupted, StoreUnreachable):
                raise
            except UnknownPoint as error:
                return Repaired(hit.id, reason=error.message)
            except DrvmError as error:
                reason = error.message
            if made is not None:
                return Repaired(hit.id, made.generation, left=self._end(made))
        if twin is None:
            where = "no second repository was given" if self._other is None else "it has no twin"
            reason = f"{reason}; {where}"
        return Repaired(hit.id, reason=reason)

    # -- inside -------------------------------------------------------------------------------
    def _rewritten(self, mine: Point | None, twin: Point | None) -> Point | None:
        """From its own disk maps."""
        if mine is None:
            return None

        def blocks(disk: Disk) -> _Elsewhere:
            return _Elsewhere(self._repository, disk, self._twin_disk(twin, disk))

        return rewrite_point(
            self._repository,
            mine,
            self._bad,
            level=self._tools.level,
            blocks=blocks,
            blob=self._blobs(mine, twin),
            progress=self._tools.progress,
            trace=self._tools.trace,
        )

    def _written_as_another(self, mine: Point | None, twin: Point | None) -> Point | None:
        """From another good generation, such as a killed rewriter leaves; not where they show
        different things, for who knows which is true?"""
        generations, good = self._repository.generations, []
        for other in generations.of(mine.manifest.vm_uuid, mine.id) if mine else []:
            decided = generations.decided(other)
            if decided.status is Status.OK:
                with contextlib.suppress(DamageFound, ObjectMissing):
                    manifest = generations.manifest(other, decided.manifest_sha256)
                    good.append(Point(manifest, other.generation))
        for point in good:
            if mine and point.generation == mine.generation:
                continue
            with contextlib.suppress(DamageFound):
                if all(agrees(self._repository, point.manifest, one.manifest) for one in good):
                    return self._rewritten(point, twin)
        return None

    def _copied_back(self, mine: Point | None, twin: Point | None) -> Point | None:
        """From the twin alone; what else the repository has is shared."""
        if twin is None or self._other is None:
            return None
        whole = {p.id: p for p in self._listing.points if p.id not in self._hit}
        plan = CopyPlan((PlannedPoint(twin, "copy"),), self._theirs.points, whole, ())
        copied = run_copy(
            self._other,
            self._repository,
            plan,
            writer=self._tools.writer,
            level=self._tools.level,
            clock=self._tools.clock,
            progress=self._tools.progress,
            trace=self._tools.trace,
            banned=self._bad,
        )
        if copied.failed:
            raise copied.failed[0][1]
        return copied.points[0] if copied.points else None

    def _twin_disk(self, twin: Point | None, disk: Disk) -> LeafReader | None:
        if twin is None or self._other is None:
            return None
        for theirs in twin.manifest.streams:
            if (theirs.target, theirs.size_bytes) == (disk.target, disk.size_bytes):
                return self._other.leaf_reader(theirs)
        return None

    def _blobs(self, mine: Point, twin: Point | None) -> Callable[[StoredBlob], bytes]:
        def read(blob: StoredBlob) -> bytes:
            try:
                return self._repository.blob(blob)
            except DamageFound:
                theirs = _twin_blob(mine, twin, blob)
                if theirs is None or self._other is None:
                    raise
                return self._other.blob(theirs)

        return read

    def superseded(self) -> tuple[str, ...]:
        """End what earlier repairs, here or elsewhere, had to leave; why some of it stays."""
        counted = Counter(found.point_id for found in self._repository.generations.listed())
        several = [p for p in self._listing.points if counted[p.id] > 1 and p.id not in self._hit]
        return tuple(sorted({left for point in several if (left := self._end(point))}))

    def _end(self, good: Point) -> str:
        """End the generations of a point before this one, which is whole. Why one stays, if it
        does: none that is younger than any request lives goes, lest a late duplicate bring it
        back without its packs (docs/adr/027-collection.md).

        Only what was decided before goes. So however many do this at once, the last one stays."""
        store, left = self._repository.store, ""
        generations = self._repository.generations
        order = self._order(good.id, good.generation)
        try:
            for old in generations.of(good.manifest.vm_uuid, good.id):
                decided = generations.decided(old)
                if old.generation == good.generation or decided.status not in _DECIDED:
                    continue
                later = self._order(old.point_id, old.generation) > order
                if decided.status is Status.OK and later:
                    continue
                if not self._may_stand_for(good, old, decided):
                    left = f"an older generation of point {good.id} shows something else, and stays"
                elif store_time(store) - old.stored < self._tools.settled:
                    left = f"a damaged generation of point {good.id} is too young to be removed"
                else:
                    generations.end(old, self._tools.trace)
        except StoreRefused as error:
            left = f"a damaged generation of point {good.id} can't be removed: {error.message}"
        return left

    def _may_stand_for(self, good: Point, old: Generation, decided: Decided) -> bool:
        """Whether nothing is lost with the older one: whoever holds the keys can write a younger
        one that lies."""
        try:
            manifest = self._repository.generations.manifest(old, decided.manifest_sha256)
        except (DamageFound, ObjectMissing):
            return True
        try:
            return agrees(self._repository, good.manifest, manifest)
        except DamageFound:
            return False

    def _order(self, point_id: str, generation: str) -> tuple[dt.datetime, str]:
        final = self._repository.store.head(final_object(point_id, generation))
        return final.modified, generation


class _Elsewhere:
    """Fulfils ``Blocks``: blocks in bad packs, from wherever. What comes back has the right id, or
    is compared with the leaf's digest by whoever asked."""

    def __init__(self, repository: Repository, disk: Disk, twin: LeafReader | None) -> None:
        self._repository = repository
        self._own = repository.leaf_reader(disk)
        self._twin = twin

    def read(self, index: int, places: I64) -> Rows:
        rows = np.zeros((len(places), BLOCK_BYTES), dtype=np.uint8)
        leaf = self._own.map.leaf(index)
        if leaf is None:
            return rows
        pack, ordinal = leaf.pack[places], leaf.ordinal[places]
        lost = pack != ZERO
        for number in np.unique(pack[lost]).tolist():
            here = np.flatnonzero(pack == number)
            lost[here] = ~self._frames(leaf.packs[number], ordinal[here], here, rows)
        missing = np.flatnonzero(lost)
        if len(missing):
            ids = self._own.ids(leaf, places[missing])
            if ids is not None:
                missing = missing[~self._by_id(ids, missing, rows)]
        if len(missing):
            if self._twin is None:
                raise DamageFound(
                    f"{len(missing)} blocks of leaf {index} of a disk are nowhere else"
                )
            rows[missing] = self._twin.read(index, places[missing])
        return rows

    # -- inside -------------------------------------------------------------------------------
    def _by_id(self, ids: Ids, at: I64, rows: Rows) -> Flags:
        """Read the blocks of these ids, wherever the index knows them, into ``rows``; which were
        had."""
        had = np.zeros(len(ids), dtype=np.bool_)
        found = self._repository.find(ids)
        for number, name in enumerate(found.packs):
            here = np.flatnonzero(found.which == number)
            read = self._frames(name, found.ordinal[here], at[here], rows)
            is_now = self._repository.hasher.ids(rows[at[here]].reshape(-1).data)
            had[here] = read & (is_now == ids[here]).all(axis=1)
        return had

    def _frames(self, name: bytes, ordinals: I64, at: I64, rows: Rows) -> Flags:
        """Read blocks of a pack, each frame by itself, into these ``rows``; which were had."""
        had = np.zeros(len(ordinals), dtype=np.bool_)
        frame, slot = np.divmod(ordinals, FRAME_BLOCKS)
        for number in np.unique(frame).tolist():
            here = np.flatnonzero(frame == number)
            try:
                plain = self._repository.packs.frame(name, number)
            except DamageFound:
                continue
            blocks = np.frombuffer(plain, dtype=np.uint8).reshape(-1, BLOCK_BYTES)
            here = here[slot[here] < len(blocks)]
            rows[at[here]] = blocks[slot[here]]
            had[here] = True
        return had


def _of(listing: Listing, hit: PointHit) -> Point | None:
    """The point with the id and the machine of the one that is hit."""
    named = (p for p in listing.points if (p.id, p.manifest.vm_uuid) == (hit.id, hit.vm_uuid))
    return next(named, None)


def _twin_blob(mine: Point, twin: Point | None, blob: StoredBlob) -> StoredBlob | None:
    pairs = blobs(mine.manifest, twin.manifest) if twin is not None else ()
    return next((theirs for own, theirs in pairs if own == blob), None)
