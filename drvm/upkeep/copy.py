"""Copying points into another repository, under its own keys: a second site.

A copy has the id of its point, so that either finds the other. It is whole by itself: neither
restores nor later copies need anything of the source. Drill results are not copied, since they
prove the data that they read; pins are, since they say something about the point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.chunker.runs import ZERO, Leaf
from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import DamageFound, UnknownPoint, UsageError
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.units import MIB
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap
from drvm.repository.leaf_reader import LeafReader
from drvm.repository.manifest import CopiedFrom, Disk, Manifest, StoredBlob
from drvm.repository.nodes import Child
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.upkeep.anew import stretches, write_point

State = Literal["copy", "there", "removed"]
_GENERATIONS = 3
"""How many generations of a point are tried, should each be rewritten while it is read."""
_PIECE_BYTES = 2 * MIB
_ZEROES, _UNCHANGED, _DATA, _DONE = range(4)
_NOWHERE = -2
_NO_ROWS = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """``state``: ``there`` is good in the target already; ``removed`` was, and was ended there by
    its own rules or by hand: it is copied again only where it is named."""

    point: Point
    state: State


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """``points``: all that were asked for, oldest first. ``known``: all of the source. ``twins``:
    what the target has, by id."""

    points: tuple[PlannedPoint, ...]
    known: tuple[Point, ...]
    twins: dict[str, Point]
    problems: tuple[str, ...]

    @property
    def going(self) -> tuple[Point, ...]:
        return tuple(planned.point for planned in self.points if planned.state == "copy")


@dataclass(frozen=True, slots=True)
class Copied:
    """``points``: as they are in the target. ``gone``: removed from the source meanwhile.
    ``failed``: those whose data is damaged there, and how. ``pins``: how many were set."""

    points: tuple[Point, ...]
    gone: tuple[Point, ...]
    failed: tuple[tuple[Point, DamageFound], ...]
    pins: int


def plan_copy(
    source: Repository,
    target: Repository,
    listing: Listing,
    wanted: Callable[[Point], bool],
    named: frozenset[str] = frozenset(),
) -> CopyPlan:
    """``listing``: the points of the source; ``named``: ids of those that somebody named. Reads
    only. Raises ``UsageError`` where both are one repository."""
    if source.id == target.id:
        raise UsageError(
            f"{target.store.location} is the repository itself, or a copy of its objects",
            hint="a second repository has an id and keys of its own: drvm init --repository URL",
        )
    there = target.points()
    twins = {point.id: point for point in there.points}
    points = []
    for point in filter(wanted, listing.points):
        state: State = "there" if point.id in twins else "copy"
        if state == "copy" and point.id not in named and target.was_ended(point):
            state = "removed"
        points.append(PlannedPoint(point, state))
    return CopyPlan(tuple(points), listing.points, twins, listing.problems + there.problems)


def run_copy(
    source: Repository,
    target: Repository,
    plan: CopyPlan,
    *,
    writer: str,
    level: int,
    clock: Clock,
    progress: Progress,
    trace: Trace = no_trace,
    banned: frozenset[bytes] = frozenset(),
) -> Copied:
    """Copy what the plan says, oldest first; ``writer`` names this machine. Nothing relies on
    packs of the target that are ``banned``.

    A crash leaves the points that were copied, and packs that the next run finds again by their
    ids. A point whose data is damaged in the source is left out and told, and the others go on;
    raises what the stores raise, and ``PacksCondemned``.
    """
    target.refresh(banned)
    total = sum(disk.size_bytes for point in plan.going for disk in point.manifest.streams)
    progress.stage(f"copying {len(plan.going)} points to {target.store.location}", total)
    twins, copied, gone, failed = dict(plan.twins), [], [], []
    for point in plan.going:

        def write(point: Point) -> Point:
            base = _base(point, plan.known, twins)
            origin = CopiedFrom(source.id, writer, rfc3339(clock.now()))
            copy = _Copy(source, target, point, origin, base)
            within = _Within(progress)
            return write_point(
                target, copy, banned=banned, level=level, progress=within, trace=trace
            )

        try:
            made = _any_generation(source, point, write)
        except DamageFound as error:
            failed.append((point, error))
            continue
        if made is None:
            gone.append(point)
        else:
            twins[point.id] = made
            copied.append(made)
    asked = [planned.point for planned in plan.points if planned.point.id in twins]
    pins = _copy_pins(source, target, asked, twins, trace)
    return Copied(tuple(copied), tuple(gone), tuple(failed), pins)


class _Within:
    """Progress inside the stage of the whole copy, whose time left is what people want."""

    def __init__(self, progress: Progress) -> None:
        self.advance = progress.advance

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        pass


def _any_generation(
    source: Repository, point: Point, write: Callable[[Point], Point]
) -> Point | None:
    """``write`` the point, or another generation of it if that was ended meanwhile; ``None`` where
    there is none any more."""
    for attempt in range(1, _GENERATIONS + 1):
        try:
            return write(point)
        except DamageFound:
            again = [p for p in source.points(point.manifest.vm_uuid).points if p.id == point.id]
            if not again:
                return None
            if again[0].generation == point.generation or attempt == _GENERATIONS:
                raise
            point = again[0]
    raise AssertionError("unreachable")


def _base(
    point: Point, known: Sequence[Point], twins: dict[str, Point]
) -> tuple[Point, Point] | None:
    """A point of the same machine that both repositories have, and its twin: the parent, or the
    one before, or any."""
    mine = [p for p in known if p.manifest.vm_uuid == point.manifest.vm_uuid and p.id in twins]
    older = [p for p in mine if p.manifest.created <= point.manifest.created]
    for candidate in (*(p for p in mine if p.id == point.manifest.parent), *older[::-1], *mine):
        return candidate, twins[candidate.id]
    return None


def _copy_pins(
    source: Repository,
    target: Repository,
    points: Iterable[Point],
    twins: dict[str, Point],
    trace: Trace,
) -> int:
    """Pin what is pinned in the source and not in the target. Nothing is unpinned there."""
    pinned, there, count = source.pins(), target.pins(), 0
    for point in points:
        if point.id not in there:
            for pin in pinned.get(point.id, ()):
                with contextlib.suppress(UnknownPoint):  # removed there meanwhile
                    target.pin(twins[point.id], pin, trace)
                    count += 1
    return count


class _Copy:
    """Fulfils ``Source``."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        point: Point,
        origin: CopiedFrom,
        base: tuple[Point, Point] | None,
    ) -> None:
        self._source = source
        self._target = target
        self._base = base
        self.manifest = replace(point.manifest, copied_from=origin)

    def disk(self, disk: Disk, banned: frozenset[bytes]) -> _CopiedDisk:
        reader = self._source.leaf_reader(disk)
        if self._base is None:
            return _CopiedDisk(reader, None, None)
        theirs, ours = (_disk_of(point.manifest, disk.target) for point in self._base)
        if theirs is None or ours is None or theirs.size_bytes != ours.size_bytes:
            return _CopiedDisk(reader, None, None)
        return _CopiedDisk(reader, self._source.disk_map(theirs), self._target.disk_map(ours))

    def blob(self, blob: StoredBlob, banned: frozenset[bytes]) -> bytes | None:
        return self._source.blob(blob)

    def finished(self, manifest: Manifest, banned: frozenset[bytes]) -> Manifest:
        return manifest


def _disk_of(manifest: Manifest, target: str) -> Disk | None:
    return next((disk for disk in manifest.streams if disk.target == target), None)


class _CopiedDisk:
    """Fulfils ``DiskSource``. ``since`` is the disk's map in the point that both repositories
    have, in the source; ``parent`` the same in the target."""

    def __init__(self, reader: LeafReader, since: DiskMap | None, parent: DiskMap | None) -> None:
        self._reader = reader
        self._since = since
        self.parent = parent

    def give(self, index: int, writer: DiskWriter) -> None:
        disk_map = self._reader.map
        child = disk_map.leaf_child(index)
        length = min(
            disk_map.leaf_blocks(index) * BLOCK_BYTES, disk_map.size_bytes - writer.position_bytes
        )
        if child is None:
            writer.zero(length)
            return
        if self._is_as_before(index, child) and writer.unchanged(length):
            return
        leaf = disk_map.leaf(index)
        assert leaf is not None
        self._give(index, self._kinds(index, leaf), writer)

    def _give(self, index: int, kinds: npt.NDArray[np.int8], writer: DiskWriter) -> None:
        places = np.flatnonzero(kinds == _DATA)
        rows = self._reader.read(index, places).reshape(-1) if len(places) else _NO_ROWS
        at = 0
        for start, stop in stretches(kinds):
            kind, left = kinds[start], self._reader.map.size_bytes - writer.position_bytes
            length = min((stop - start) * BLOCK_BYTES, left)
            if kind == _ZEROES:
                writer.zero(length)
            elif kind == _DATA:
                for piece in range(at, at + length, _PIECE_BYTES):
                    writer.data(rows[piece : min(piece + _PIECE_BYTES, at + length)].data)
                at += (stop - start) * BLOCK_BYTES
            elif kind == _UNCHANGED and not writer.unchanged(length):
                kinds[kinds == _UNCHANGED] = _DATA  # the target's blocks can't be relied on
                kinds[:start] = _DONE
                self._give(index, kinds, writer)
                return

    def _kinds(self, index: int, leaf: Leaf) -> npt.NDArray[np.int8]:
        """What each block of a leaf is. Unchanged are those that lie where the older point has
        them: whatever was stored twice is read, and found in the target by its id."""
        kinds = np.where(leaf.pack == ZERO, _ZEROES, _DATA).astype(np.int8)
        before = self._before(index)
        if before is not None:
            numbers = {name: number for number, name in enumerate(before.packs)}
            there = np.array([numbers.get(name, _NOWHERE) for name in leaf.packs], dtype=np.int64)
            same = (np.append(there, ZERO)[leaf.pack] == before.pack) & (leaf.pack != ZERO)
            kinds[same & (leaf.ordinal == before.ordinal)] = _UNCHANGED
        return kinds

    def _is_as_before(self, index: int, child: Child) -> bool:
        with contextlib.suppress(DamageFound):
            return self._since is not None and self._since.leaf_child(index) == child
        return False

    def _before(self, index: int) -> Leaf | None:
        """The leaf in the older point, if it is as long."""
        if self._since is None or index >= self._since.leaves:
            return None
        if self._since.leaf_blocks(index) != self._reader.map.leaf_blocks(index):
            return None
        with contextlib.suppress(DamageFound):
            return self._since.leaf(index)
        return None
