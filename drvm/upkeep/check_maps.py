"""The disk maps of a repository during a check: what of which disk can't be had back.

Subtrees that points share are looked at once. A leaf is read where a pack that it needs is bad, and
where the arc of this run has the pack that it lies in: then its addresses must lead to the very
blocks that its digest stands for. A parent's wrong address is shared by later points, and nobody
else looks before the restore.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import LEAF_BLOCKS, BlockHasher, Ids, block_count, zero_ids
from drvm.chunker.runs import ZERO, Leaf
from drvm.core.errors import DamageFound
from drvm.repository.checks import Arc
from drvm.repository.diskmap import DiskMap, levels, width
from drvm.repository.index.tables import IdTables
from drvm.repository.layout import FANOUT
from drvm.repository.nodes import DIGEST_BYTES, Child
from drvm.repository.packs import BlobRef, PackReader
from drvm.repository.window import I64
from drvm.upkeep.check_packs import CheckedPacks

SPANS_KEPT = 16384
"""Of what one disk, node or leaf has lost: 256 KiB. The rest is only counted."""
_DIRTY_KEPT = 128


@dataclass(slots=True)
class Lost:
    """Blocks that are lost: how many, in how many spans of neighbours, and the first of those, as
    (first block, number of blocks) one behind the other."""

    blocks: int = 0
    count: int = 0
    spans: array[int] = field(default_factory=lambda: array("q"))
    first: int = 0
    end: int = 0

    def add(self, start: int, blocks: int) -> None:
        """Behind all that are there."""
        self.behind(Lost(blocks, 1, array("q", (start, blocks)), start, start + blocks), 0)

    def behind(self, other: Lost, shift: int) -> None:
        """The same with all of ``other``, which lies ``shift`` blocks further on."""
        if not other.count:
            return
        joined = self.count > 0 and self.end == other.first + shift
        if joined and 2 * self.count == len(self.spans):
            self.spans[-1] += other.spans[1]
        for at in range(2 * joined, len(other.spans), 2):
            if len(self.spans) >= 2 * SPANS_KEPT or 2 * self.count > len(self.spans):
                break
            self.spans.extend((other.spans[at] + shift, other.spans[at + 1]))
        self.first = self.first if self.count else other.first + shift
        self.count += other.count - joined
        self.blocks += other.blocks
        self.end = other.end + shift


@dataclass(frozen=True, slots=True)
class _Place:
    """A node of a disk map, or a leaf, at ``level`` 0: ``blocks`` of the disk, from ``first``."""

    level: int
    index: int
    first: int
    blocks: int


_Look = Callable[[DiskMap, Child, _Place], Lost]


class MapCheck:
    """Looks at one disk map after the other. One thread.

    ``arc``: leaves in packs of it are compared with their digests, and those that somebody set
    aside, or that rely on a table of ids which lies. ``leaves``: how many were.
    """

    def __init__(
        self,
        packs: CheckedPacks,
        reader: PackReader,
        tables: IdTables,
        hasher: BlockHasher,
        arc: Arc,
    ) -> None:
        self._packs = packs
        self._reader = reader
        self._tables = tables
        self._hasher = hasher
        self._arc = arc
        self.begin_again()

    def begin_again(self) -> None:
        """More packs turned out to be bad since the first disk was looked at."""
        self._clean = Seen()
        self._dirty: dict[int, Lost] = {}
        self.leaves = 0

    def disk(self, disk_map: DiskMap) -> Lost:
        """What of the disk is lost. Raises the store's errors."""
        top = levels(disk_map.leaves)
        root = disk_map.child(top, 0)
        if root is None:
            return Lost()
        return self._once(self._node, disk_map, root, _place(disk_map, top, 0))

    # -- inside: places of what is lost count from the start of the node or leaf ----------------
    def _node(self, disk_map: DiskMap, node: Child, place: _Place) -> Lost:
        below = self._children(disk_map, node, place)
        lost = Lost()
        if below is None:
            lost.add(0, place.blocks)
            return lost
        for index, child in below:
            at = _place(disk_map, place.level - 1, index)
            if at.level:
                found = self._once(self._node, disk_map, child, at)
            elif self._compares(child) or self._packs.doubtful((_pack_of(child), *child.packs)):
                found = self._once(self._leaf, disk_map, child, at)
            else:
                continue
            lost.behind(found, at.first - place.first)
        return lost

    def _once(self, look: _Look, disk_map: DiskMap, child: Child, place: _Place) -> Lost:
        """What ``look`` says, from memory where it said so before."""
        key = _key(child, place)
        if key in self._clean:
            return Lost()
        lost = self._dirty.get(key)
        if lost is None:
            lost = look(disk_map, child, place)
            if lost.count:
                self._dirty[key] = lost
            else:
                self._clean.add(key)
            if len(self._dirty) > _DIRTY_KEPT:
                self._dirty.pop(next(iter(self._dirty)))
        return lost

    def _children(
        self, disk_map: DiskMap, node: Child, place: _Place
    ) -> list[tuple[int, Child]] | None:
        """``None`` where the node can't be read, also when it is read anew."""
        first = place.index * FANOUT
        end = min(first + FANOUT, width(disk_map.leaves, place.level - 1))
        for _ in range(2):
            try:
                found = [(i, disk_map.child(place.level - 1, i)) for i in range(first, end)]
                return [(index, child) for index, child in found if child is not None]
            except DamageFound as error:
                self._reader.forget(_pack_of(node))
                reason = error.message
        self._packs.blame(_pack_of(node), reason)
        return None

    def _leaf(self, disk_map: DiskMap, child: Child, place: _Place) -> Lost:
        leaf = self._read(disk_map, child, place)
        flags = None if leaf is None else self._lost(leaf, child, compare=self._compares(child))
        if flags is None:
            flags = np.ones(place.blocks, dtype=np.bool_)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
        lost = Lost()
        for start, end in zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True):
            lost.add(start, end - start)
        return lost

    def _compares(self, child: Child) -> bool:
        pack = _pack_of(child)
        return (
            pack in self._arc
            or self._packs.suspected(pack)
            or not self._packs.lying.isdisjoint(child.packs)
        )

    def _read(self, disk_map: DiskMap, child: Child, place: _Place) -> Leaf | None:
        reason = ""
        for _ in range(2):
            try:
                return disk_map.leaf(place.index)
            except DamageFound as error:
                self._reader.forget(_pack_of(child))
                reason = error.message
        self._packs.blame(_pack_of(child), reason)
        return None

    def _lost(self, leaf: Leaf, child: Child, *, compare: bool) -> npt.NDArray[np.bool_] | None:
        """Which blocks can't be read; ``None`` where the leaf is not what its digest stands for.

        With ids at hand for all blocks the digest proves the addresses, also of what can't be
        read. Without, what can't be read is all that can be said."""
        lost = np.zeros(len(leaf.pack), dtype=np.bool_)
        missing = np.zeros(len(leaf.pack), dtype=np.bool_)
        ids = zero_ids(len(leaf.pack))
        for number in np.unique(leaf.pack[leaf.pack != ZERO]).tolist():
            at = np.flatnonzero(leaf.pack == number)
            name, ordinals = leaf.packs[number], leaf.ordinal[at]
            if compare:
                ids[at], there = self._ids(name, ordinals)
                missing[at] = ~there
            fault = self._packs.fault(name)
            if fault is not None:
                lost[at] = fault.loses(ordinals)
        self.leaves += compare
        known = compare and not missing.any()
        wrong = bool((missing & ~lost).any())
        if wrong or (known and self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != child.digest):
            if self._packs.lying.isdisjoint(leaf.packs):
                self._packs.blame(_pack_of(child), "it holds a disk map with wrong addresses")
            return None
        return lost

    def _ids(self, name: bytes, ordinals: I64) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """The ids at these ordinals, and which of them there are."""
        if name not in self._packs.lying and self._packs.fault(name) is None:
            ids = self._tables.at(name, ordinals)
            if ids is not None:
                return ids, np.ones(len(ordinals), dtype=np.bool_)
            self._packs.inspect(name)
        if name in self._packs.lying:
            true = self._packs.true_ids(name)
            if true is not None:
                return _at(*true, ordinals)
        rows = self._tables.whole(name)
        if rows is None:
            return zero_ids(len(ordinals)), np.zeros(len(ordinals), dtype=np.bool_)
        return _at(rows, np.arange(len(rows)), ordinals)


class Seen:
    """Numbers of 64 bits, eight bytes apiece where a set takes seventy."""

    _YOUNG = 1 << 16

    def __init__(self) -> None:
        self._young: set[int] = set()
        self._old: list[npt.NDArray[np.uint64]] = []

    def __contains__(self, number: int) -> bool:
        return number in self._young or any(_holds(array, number) for array in self._old)

    def add(self, number: int) -> None:
        self._young.add(number)
        if len(self._young) < self._YOUNG:
            return
        merged = np.array(sorted(self._young), dtype=np.uint64)
        self._young = set()
        while self._old and len(self._old[-1]) < 2 * len(merged):
            merged = np.sort(np.concatenate((self._old.pop(), merged)))
        self._old.append(merged)


def _holds(array: npt.NDArray[np.uint64], number: int) -> bool:
    at = int(np.searchsorted(array, np.uint64(number)))
    return at < len(array) and int(array[at]) == number


def _place(disk_map: DiskMap, level: int, index: int) -> _Place:
    reach = LEAF_BLOCKS * FANOUT**level
    blocks = min(reach, block_count(disk_map.size_bytes) - index * reach)
    return _Place(level, index, index * reach, blocks)


def _key(child: Child, place: _Place) -> int:
    """Whoever says the same of as many blocks has the same below."""
    assert isinstance(child.ref, BlobRef)
    numbers = b"%d %d %d" % (child.ref.number, place.level, place.blocks)
    text = b"".join((child.ref.pack, child.digest, *child.packs, numbers))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _pack_of(child: Child) -> bytes:
    assert isinstance(child.ref, BlobRef)
    return child.ref.pack


def _at(ids: Ids, places: I64, wanted: I64) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Of each wanted ordinal the id, and whether it is there; ``places`` ascend."""
    if not len(places):
        return zero_ids(len(wanted)), np.zeros(len(wanted), dtype=np.bool_)
    at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
    found = ids[at]
    return found, (places[at] == wanted) & found.any(axis=1)
