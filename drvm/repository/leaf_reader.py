"""Reading some blocks of a leaf: for whoever writes a point again, and needs few of them.

Only the frames that hold those blocks are fetched. That they are the right ones is proven as for
a whole leaf: the ids of all its blocks, computed from what was read and taken from the packs'
authenticated tables for the rest, have the leaf's digest.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BLOCK_BYTES, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO, Leaf
from drvm.core.errors import DamageFound
from drvm.core.threads import Pool
from drvm.core.units import MIB
from drvm.repository.diskmap import DiskMap
from drvm.repository.frame_cache import FrameCache
from drvm.repository.index.tables import IdTables
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.packs import PackReader

_FETCHERS = 4
_CACHE_BYTES = 32 * MIB
"""For frames of which not all blocks were wanted: the next leaf may want the others."""

I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]
"""Blocks: shape (n, 4096)."""


class LeafReader:
    """The blocks of one disk of a point; belongs to one thread. Takes up to 64 MiB for what is
    read at once, and as much again for frames on their way."""

    def __init__(
        self, disk_map: DiskMap, packs: PackReader, hasher: BlockHasher, tables: IdTables
    ) -> None:
        self.map = disk_map
        self._packs = packs
        self._hasher = hasher
        self._tables = tables
        self._cache = FrameCache(_CACHE_BYTES)

    def read(self, index: int, places: I64) -> Rows:
        """The blocks of leaf ``index`` at these places in it, which ascend. Raises ``DamageFound``
        unless they are those of the point, and what the store raises."""
        leaf, child = self.map.leaf(index), self.map.leaf_child(index)
        if leaf is None or child is None:
            return np.zeros((len(places), BLOCK_BYTES), dtype=np.uint8)
        rows = self._fetch(leaf, places)
        ids = self._other_ids(leaf, places)
        ids[places] = self._hasher.ids(rows.reshape(-1).data)
        if self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != child.digest:
            raise DamageFound(f"leaf {index} of a disk is not what its disk map stands for")
        return rows

    def ids(self, leaf: Leaf, places: I64) -> Ids | None:
        """What the packs' own tables have at these places of a leaf, zeroes for blocks of zeroes.
        ``None`` where a table can't be had, or lacks a block."""
        used = np.unique(leaf.pack[places])
        used = used[used != ZERO]
        self._tables.ensure([leaf.packs[number] for number in used.tolist()])
        ids = zero_ids(len(places))
        for number in used.tolist():
            here = np.flatnonzero(leaf.pack[places] == number)
            found = self._tables.at(leaf.packs[number], leaf.ordinal[places[here]])
            if found is None:
                return None
            ids[here] = found
        return ids

    # -- inside -------------------------------------------------------------------------------
    def _other_ids(self, leaf: Leaf, places: I64) -> Ids:
        """The ids of the leaf but for these places; from the blocks where tables can't be had."""
        ids = zero_ids(len(leaf.pack))
        other = leaf.pack != ZERO
        other[places] = False
        others = np.flatnonzero(other)
        found = self.ids(leaf, others)
        if found is None:
            found = self._hasher.ids(self._fetch(leaf, others).reshape(-1).data)
        ids[others] = found
        return ids

    def _fetch(self, leaf: Leaf, places: I64) -> Rows:
        rows = np.zeros((len(places), BLOCK_BYTES), dtype=np.uint8)
        pack = leaf.pack[places]
        frame, slot = np.divmod(leaf.ordinal[places], FRAME_BLOCKS)
        with Pool(_FETCHERS, thread_name_prefix="leaf") as pool:
            under_way = []
            for number in np.unique(pack[pack != ZERO]).tolist():
                here = np.flatnonzero(pack == number)
                here = here[np.argsort(frame[here], kind="stable")]
                name = leaf.packs[number]
                absent = self._from_cache(name, here, frame, slot, rows)
                for group in self._packs.ranges(name, absent):
                    mine = here[np.isin(frame[here], group)]
                    under_way.append(pool.submit(self._range, name, group, mine, frame, slot, rows))
            for future in under_way:
                future.result()
        return rows

    def _from_cache(self, name: bytes, here: I64, frame: I64, slot: I64, rows: Rows) -> I64:
        """Take what is at hand; returns the frames that are not."""
        absent = []
        for number in np.unique(frame[here]).tolist():
            plain = self._cache.get(name, number)
            if plain is None:
                absent.append(number)
            else:
                _spread(name, plain, here[frame[here] == number], slot, rows)
        return np.array(absent, dtype=np.int64)

    def _range(self, name: bytes, group: I64, mine: I64, frame: I64, slot: I64, rows: Rows) -> None:
        """One request; ``mine`` are the rows that its frames hold, in their order."""
        edges = np.searchsorted(frame[mine], group).tolist()
        plains: Iterable[bytes] = self._packs.frames(name, group)
        for number, start, stop, plain in zip(
            group.tolist(), edges, [*edges[1:], len(mine)], plains, strict=True
        ):
            _spread(name, plain, mine[start:stop], slot, rows)
            if (stop - start) * BLOCK_BYTES < len(plain):
                self._cache.put(name, number, plain)


def _spread(name: bytes, plain: bytes, mine: I64, slot: I64, rows: Rows) -> None:
    """Copy the blocks of a frame to where they belong."""
    blocks = np.frombuffer(plain, dtype=np.uint8).reshape(-1, BLOCK_BYTES)
    if len(mine) and int(slot[mine].max()) >= len(blocks):
        raise DamageFound(f"a disk map names blocks beyond the end of a frame of pack {name.hex()}")
    rows[mine] = blocks[slot[mine]]
