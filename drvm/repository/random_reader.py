"""Reading any range of a disk at any time: for drills and servers, not for whole disks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO, Leaf
from drvm.core.errors import DamageFound
from drvm.core.units import MIB
from drvm.repository.diskmap import DiskMap
from drvm.repository.frame_cache import FrameCache
from drvm.repository.index.tables import IdTables
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.packs import PackReader
from drvm.repository.window import I64

_LEAVES_KEPT = 32
"""Half a mebibyte each: their addresses and ids."""


@dataclass(frozen=True, slots=True)
class _KnownLeaf:
    """``ids`` are what the leaf's digest stands for."""

    leaf: Leaf
    ids: Ids


class RandomReader:
    """Reads any range of a disk of a point. Safe for several threads, one at a time.

    Every block is compared with its id: the ids of a leaf come from the packs' tables, and count
    only if they are what the leaf's digest stands for. Raises ``DamageFound``, and what the store
    raises.
    """

    def __init__(
        self,
        disk_map: DiskMap,
        packs: PackReader,
        hasher: BlockHasher,
        tables: IdTables,
        *,
        cache_bytes: int = 64 * MIB,
    ) -> None:
        self._map = disk_map
        self._packs = packs
        self._hasher = hasher
        self._tables = tables
        self._frames = FrameCache(cache_bytes)
        self._leaves: OrderedDict[int, _KnownLeaf | None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._map.size_bytes

    def read(self, offset: int, length: int) -> bytearray:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} bytes at {offset} of {self.size_bytes}")
        first, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        data = bytearray((end - first) * BLOCK_BYTES)
        with self._lock:
            at = first
            while at < end:
                leaf, start = divmod(at, LEAF_BLOCKS)
                count = min(end - at, LEAF_BLOCKS - start)
                place = (at - first) * BLOCK_BYTES
                view = memoryview(data)[place : place + count * BLOCK_BYTES]
                self._read(leaf, start, view)
                at += count
        cut = offset - first * BLOCK_BYTES
        return data if cut == 0 and length == len(data) else data[cut : cut + length]

    def close(self) -> None:
        """Nothing is held open."""

    # -- inside -------------------------------------------------------------------------------
    def _read(self, index: int, start: int, into: memoryview) -> None:
        """The blocks of one leaf from ``start`` on; ``into`` is zeroed."""
        known = self._known(index)
        if known is None:
            return
        stop = start + len(into) // BLOCK_BYTES
        pack, ordinal = known.leaf.pack[start:stop], known.leaf.ordinal[start:stop]
        for number in np.unique(pack[pack != ZERO]).tolist():
            name = known.leaf.packs[number]
            at = np.flatnonzero(pack == number)
            frame, slot = np.divmod(ordinal[at], FRAME_BLOCKS)
            for which, plain in self._plain(name, np.unique(frame)).items():
                here = frame == which
                mine, slots = at[here], slot[here].tolist()
                ids = self._hasher.ids(plain)
                if slots and max(slots) >= len(ids):
                    raise DamageFound(
                        f"a disk map names blocks beyond the end of frame {which} "
                        f"of pack {name.hex()}"
                    )
                if not np.array_equal(ids[slots], known.ids[mine + start]):
                    raise DamageFound(f"pack {name.hex()}, frame {which} holds other blocks")
                for place, slot_at in zip(mine.tolist(), slots, strict=True):
                    to, source = place * BLOCK_BYTES, slot_at * BLOCK_BYTES
                    into[to : to + BLOCK_BYTES] = plain[source : source + BLOCK_BYTES]

    def _plain(self, name: bytes, numbers: I64) -> dict[int, bytes]:
        """Frames of one pack, those that are not at hand in few requests."""
        found: dict[int, bytes] = {}
        for number in numbers.tolist():
            plain = self._frames.get(name, number)
            if plain is not None:
                found[number] = plain
        absent = np.array([n for n in numbers.tolist() if n not in found], dtype=np.int64)
        for group in self._packs.ranges(name, absent):
            fetched = self._packs.frames(name, group)
            for number, plain in zip(group.tolist(), fetched, strict=True):
                self._frames.put(name, number, plain)
                found[number] = plain
        return found

    def _known(self, index: int) -> _KnownLeaf | None:
        if index in self._leaves:
            self._leaves.move_to_end(index)
            return self._leaves[index]
        known = self._load(index)
        self._leaves[index] = known
        while len(self._leaves) > _LEAVES_KEPT:
            self._leaves.popitem(last=False)
        return known

    def _load(self, index: int) -> _KnownLeaf | None:
        leaf, child = self._map.leaf(index), self._map.leaf_child(index)
        if leaf is None or child is None:
            return None
        self._tables.ensure(leaf.packs)
        ids = zero_ids(len(leaf.pack))
        for number in np.unique(leaf.pack[leaf.pack != ZERO]).tolist():
            at = np.flatnonzero(leaf.pack == number)
            ids[at] = self._ids(leaf.packs[number], leaf.ordinal[at])
        if self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != child.digest:
            raise DamageFound(f"leaf {index} of a disk is not what its disk map stands for")
        return _KnownLeaf(leaf, ids)

    def _ids(self, name: bytes, wanted: I64) -> Ids:
        ids = self._tables.at(name, wanted)
        if ids is None:
            raise DamageFound(
                f"pack {name.hex()} is missing, damaged or lacks blocks that a disk map names"
            )
        return ids
