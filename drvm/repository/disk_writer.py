"""Writing one disk of a point: ranges in order, leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import (
    BLOCK_BYTES,
    LEAF_BLOCKS,
    BlockHasher,
    Buffer,
    Ids,
    block_count,
    zero_ids,
)
from drvm.chunker.runs import PACK_NAME_BYTES, ZERO, Leaf, decode_leaf, encode_leaf
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap, DiskMapWriter, relies_on
from drvm.repository.fingerprints import MISSING, Fingerprints, KnownBlocks, KnownLeaf
from drvm.repository.index import Index
from drvm.repository.nodes import DIGEST_BYTES, Child
from drvm.repository.writer import SESSION, BlockStore, Rows, Tally

_I64 = npt.NDArray[np.int64]
_SESSION_NAME = b"\xff" * PACK_NAME_BYTES
_PENDING_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Pending:
    """A leaf that waits for packs of the session to be finished, encoded to save memory."""

    index: int
    blocks: int
    digest: bytes
    encoded: bytes
    packs: tuple[bytes, ...]
    last_ordinal: int


class DiskWriter:
    """Takes a disk from its first byte to its last: ``data``, ``zero`` and ``unchanged`` each
    continue where the one before ended. Offsets are multiples of 4096; so are lengths, but for
    the disk's end.

    ``parent`` is the disk's map in the parent point, ``fingerprints`` may tell the ids of its
    blocks, and ``banned`` are packs that must not be relied on. Damage in the parent's map is no
    error: what can't be relied on is stored anew.
    """

    def __init__(
        self,
        size_bytes: int,
        store: BlockStore,
        hasher: BlockHasher,
        index: Index,
        map_writer: DiskMapWriter,
        parent: DiskMap | None,
        fingerprints: Fingerprints,
        banned: frozenset[bytes],
    ) -> None:
        self._size_bytes = size_bytes
        self._blocks = block_count(size_bytes)
        self._store = store
        self._hasher = hasher
        self._index = index
        self._map = map_writer
        self._parent = parent
        self._fingerprints = fingerprints
        self._known = None if parent is None else KnownBlocks(parent, index, hasher, fingerprints)
        self._known_leaves: dict[bool, KnownLeaf | None] = {}  # of the present leaf
        self._banned = banned
        self._position = 0  # in blocks
        self._ids, self._pack, self._ordinal = _empty_leaf(min(LEAF_BLOCKS, self._blocks))
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self.tally = Tally()
        store.begin(self.tally)

    @property
    def position_bytes(self) -> int:
        return min(self._position * BLOCK_BYTES, self._size_bytes)

    def ids(self, data: Buffer) -> Ids:
        """What ``data`` needs of its bytes: whoever reads them can ask for it first, in any
        thread, and so while other bytes are given."""
        return self._hasher.ids(_whole_blocks(data))

    def data(self, data: Buffer, ids: Ids | None = None) -> None:
        """The next bytes of the disk. The last block of the disk is padded with zeroes. ``ids``
        are those of this very data."""
        blocks = self._blocks_in(memoryview(data).nbytes)
        view = _whole_blocks(data)
        ids = self._hasher.ids(view) if ids is None else ids
        rows = np.frombuffer(view, dtype=np.uint8).reshape(blocks, BLOCK_BYTES)
        for first, count in self._in_leaf(blocks):
            self._take(first, rows[:count], ids[:count])
            rows, ids = rows[count:], ids[count:]

    def zero(self, length_bytes: int) -> None:
        """The next ``length_bytes`` read as zeroes."""
        for first, count in self._in_leaf(self._blocks_in(length_bytes)):
            self._fill(first, *_empty_leaf(count))

    def unchanged(self, length_bytes: int) -> bool:
        """The next ``length_bytes``, inside one leaf, are as in the parent.

        Returns False, having done nothing, where the parent's blocks can't be relied on or
        their ids are not at hand: then the range must be read and given to ``data``.
        """
        count = self._blocks_in(length_bytes)
        leaf_index, first = divmod(self._position, LEAF_BLOCKS)
        if first + count > LEAF_BLOCKS:
            raise ValueError("an unchanged range must lie inside one leaf")
        if self._parent is None or self._parent.size_bytes < self.position_bytes + length_bytes:
            return False
        reliable, child = self._parent_child(leaf_index)
        if not reliable:
            return False
        if child is None:
            self.zero(length_bytes)
            return True
        if count == len(self._pack) == self._parent.leaf_blocks(leaf_index):
            self._map.keep(leaf_index)
            self._next_leaf(count)
            return True
        known = self._known_leaf(leaf_index, tables=True)
        if known is None or len(known.pack) < first + count:
            return False
        here = slice(first, first + count)
        if (known.pack[here] == MISSING).any():
            return False
        for _ in self._in_leaf(count):
            self._fill(first, known.ids[here], known.pack[here], known.ordinal[here])
        return True

    def stored(self, ids: Ids, leaf: Leaf, first: int) -> None:
        """The next blocks, inside one leaf, are stored where ``leaf`` has its own from ``first``
        on, and their ids are these: whoever calls has proven both, and that none of it is banned.
        """
        if self._position % LEAF_BLOCKS + len(ids) > len(self._pack):
            raise ValueError("stored blocks must lie inside one leaf")
        numbers = np.array([self._index.pack_number(name) for name in leaf.packs], dtype=np.int64)
        here = slice(first, first + len(ids))
        pack, ordinal = np.append(numbers, ZERO)[leaf.pack[here]], leaf.ordinal[here]
        for start, _ in self._in_leaf(len(ids)):
            self._fill(start, ids, pack, ordinal)

    def finish(self) -> None:
        """The whole disk was given."""
        if self._position != self._blocks:
            raise ValueError(f"the disk ends at block {self._blocks}, not {self._position}")

    def settle(self) -> None:
        """Write the leaves whose packs are finished into the disk map."""
        frontier = self._store.frontier()
        waiting: list[_Pending] = []
        for pending in self._pending:
            if pending.last_ordinal < frontier:
                self._put(pending)
                self._pending_bytes -= len(pending.encoded)
            else:
                waiting.append(pending)
        self._pending = waiting
        self._map.settled(waiting[0].index if waiting else self._position // LEAF_BLOCKS)

    # -- inside -------------------------------------------------------------------------------
    def _blocks_in(self, length_bytes: int) -> int:
        """How many blocks the next ``length_bytes`` are. Raises ``ValueError``, before anything
        is taken, where they end inside a block or outside of the disk."""
        end = self._position * BLOCK_BYTES + length_bytes
        if length_bytes < 0 or end > self._size_bytes:
            raise ValueError("a range leaves the disk")
        if length_bytes % BLOCK_BYTES and end != self._size_bytes:
            raise ValueError("only the end of a disk may be less than a block")
        return block_count(length_bytes)

    def _in_leaf(self, count: int) -> Iterator[tuple[int, int]]:
        """(first block in its leaf, number) of each part of the next ``count`` blocks."""
        while count:
            first = self._position % LEAF_BLOCKS
            step = min(count, len(self._pack) - first)
            yield first, step
            self._position += step
            count -= step
            if first + step == len(self._pack):
                self._complete_leaf((self._position - 1) // LEAF_BLOCKS)

    def _fill(self, first: int, ids: Ids, pack: _I64, ordinal: _I64) -> None:
        end = first + len(pack)
        self._ids[first:end], self._pack[first:end], self._ordinal[first:end] = ids, pack, ordinal

    def _take(self, first: int, rows: Rows, ids: Ids) -> None:
        """Blocks of one leaf. Those that are as in the parent are where it has them."""
        pack = np.full(len(ids), ZERO, dtype=np.int64)
        ordinal = np.zeros(len(ids), dtype=np.int64)
        wanted = (ids[:, 0] | ids[:, 1]) != 0
        known = self._known_leaf(self._position // LEAF_BLOCKS, tables=False)
        if known is not None:
            there = slice(first, min(first + len(ids), len(known.pack)))
            count = max(0, there.stop - first)
            same = wanted[:count] & (known.ids[there] == ids[:count]).all(axis=1)
            pack[:count][same] = known.pack[there][same]
            ordinal[:count][same] = known.ordinal[there][same]
            wanted[:count] &= ~same
        numbers = np.flatnonzero(wanted)
        if len(numbers):
            pack[numbers], ordinal[numbers] = self._store.store(rows, ids, numbers)
        self._fill(first, ids, pack, ordinal)

    def _known_leaf(self, index: int, *, tables: bool) -> KnownLeaf | None:
        """What the parent has of the present leaf, if it can be relied on."""
        if tables not in self._known_leaves:
            reliable, child = self._parent_child(index)
            use = self._known if reliable and child is not None else None
            found = use.leaf(index, tables=tables) if use is not None else None
            self._known_leaves[tables] = found
        return self._known_leaves[tables]

    def _next_leaf(self, step: int = 0) -> None:
        self._position += step
        self._known_leaves.clear()
        left = self._blocks - self._position
        self._ids, self._pack, self._ordinal = _empty_leaf(min(LEAF_BLOCKS, left))

    def _complete_leaf(self, index: int) -> None:
        ids, pack, ordinal = self._ids, self._pack, self._ordinal
        self._next_leaf()
        if not (pack != ZERO).any():
            return
        digest = self._hasher.leaf_digest(ids)[:DIGEST_BYTES]
        self._fingerprints.write(index, ids)
        reliable, child = self._parent_child(index)
        if reliable and child is not None and child.digest == digest:
            self._map.keep(index)
            return
        used = np.unique(pack[pack != ZERO]).tolist()
        names = tuple(
            _SESSION_NAME if number == SESSION else self._index.pack_name(number) for number in used
        )
        places = np.full(len(pack), ZERO, dtype=np.int64)
        for place, number in enumerate(used):
            places[pack == number] = place
        last = int(ordinal[pack == SESSION].max(initial=-1))
        leaf = encode_leaf(Leaf(names, places, ordinal))
        self._pending.append(_Pending(index, len(pack), digest, leaf.data, leaf.packs, last))
        self._pending_bytes += len(leaf.data)
        if self._pending_bytes > _PENDING_MAX_BYTES:
            self._store.finish_pack()
        self.settle()

    def _put(self, pending: _Pending) -> None:
        leaf = decode_leaf(pending.encoded, pending.packs, pending.blocks)
        if _SESSION_NAME in leaf.packs:
            leaf = self._resolved(leaf, leaf.packs.index(_SESSION_NAME))
        self._map.put(pending.index, leaf, pending.digest)

    def _resolved(self, leaf: Leaf, session: int) -> Leaf:
        ours = leaf.pack == session
        names, place, ordinal = self._store.resolve(leaf.ordinal[ours])
        pack, ordinals = leaf.pack.copy(), leaf.ordinal.copy()
        pack[ours] = place + len(leaf.packs)
        ordinals[ours] = ordinal
        return Leaf((*leaf.packs, *names), pack, ordinals)

    def _parent_child(self, index: int) -> tuple[bool, Child | None]:
        """Whether the parent can be relied on for this leaf, and what refers to it there:
        ``None`` for zeroes."""
        if self._parent is None:
            return False, None
        try:
            child = self._parent.leaf_child(index)
        except DamageFound:
            return False, None
        return child is None or not relies_on(child, self._banned), child


def _whole_blocks(data: Buffer) -> Buffer:
    """Padded with zeroes where the last block is not whole."""
    rest = memoryview(data).nbytes % BLOCK_BYTES
    return bytes(data) + bytes(BLOCK_BYTES - rest) if rest else data


def _empty_leaf(blocks: int) -> tuple[Ids, _I64, _I64]:
    return (
        zero_ids(blocks),
        np.full(blocks, ZERO, dtype=np.int64),
        np.zeros(blocks, dtype=np.int64),
    )
