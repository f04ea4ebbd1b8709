"""Writing one disk of a point: ranges in order, leaf by leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker import kernel
from drvm.chunker.blocks import (
    BLOCK_BYTES,
    LEAF_BLOCKS,
    LEAF_BYTES,
    BlockHasher,
    Buffer,
    Ids,
    block_count,
    zero_ids,
)
from drvm.chunker.runs import PACK_NAME_BYTES, ZERO, Leaf, decode_leaf, encode_leaf
from drvm.core.errors import DamageFound
from drvm.core.extents import Extent, ExtentKind
from drvm.repository.diskmap import DiskMap, DiskMapWriter, relies_on
from drvm.repository.fingerprints import MISSING, Fingerprints, KnownBlocks, KnownLeaf
from drvm.repository.index import Index
from drvm.repository.nodes import DIGEST_BYTES, Child
from drvm.repository.writer import SESSION, BlockStore, Tally

_I64 = npt.NDArray[np.int64]
_SESSION_NAME = b"\xff" * PACK_NAME_BYTES
_PENDING_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Pending:
    """A leaf that waits for packs of the session to be finished, encoded to save memory. Its
    ordinals in the session are counted from ``base``."""

    index: int
    blocks: int
    digest: bytes
    encoded: bytes
    packs: tuple[bytes, ...]
    base: int
    last_ordinal: int


class _OpenLeaf:
    """A leaf of which something is not zero, until it is complete."""

    __slots__ = ("ids", "known", "ordinal", "pack")

    def __init__(self, blocks: int) -> None:
        self.ids = zero_ids(blocks)
        self.pack = np.full(blocks, ZERO, dtype=np.int64)
        self.ordinal = np.zeros(blocks, dtype=np.int64)
        self.known: dict[bool, KnownLeaf | None] = {}  # in the parent, without and with tables


@dataclass(frozen=True, slots=True)
class Place:
    """Where data goes that is read elsewhere: ``numbers`` are its blocks in the leaf."""

    _leaf: _OpenLeaf
    _numbers: slice | _I64
    _known: KnownLeaf | None
    _hasher: BlockHasher
    _store: BlockStore

    def fill(self, data: Buffer) -> None:
        """Once, in any thread: the bytes, as whole blocks. Those that are as in the parent are
        where it has them."""
        known, here = self._known, self._numbers
        scan = self._hasher.scan(data, None if known is None else known.ids)
        new = np.flatnonzero(scan.state == kernel.NEW)
        if known is None:
            pack, ordinal = self._leaf.pack[here], self._leaf.ordinal[here]
        else:
            same = scan.state == kernel.SAME
            pack, ordinal = np.where(same, known.pack, ZERO), np.where(same, known.ordinal, 0)
        if len(new):
            rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, BLOCK_BYTES)
            pack[new], ordinal[new] = self._store.store(rows, scan.ids, new)
        self._leaf.ids[here] = scan.ids
        self._leaf.pack[here], self._leaf.ordinal[here] = pack, ordinal


class DiskWriter:
    """Takes a disk from its first byte to its last: ``data``, ``placed``, ``zero`` and
    ``unchanged`` each continue where the one before ended. Offsets are multiples of 4096; so are
    lengths, but for the disk's end. All but ``Place.fill`` is for one thread.

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
        self._banned = banned
        self._position = 0  # in blocks
        self._open: dict[int, _OpenLeaf] = {}
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self.tally = Tally()
        store.begin(self.tally)

    @property
    def position_bytes(self) -> int:
        return min(self._position * BLOCK_BYTES, self._size_bytes)

    def place(self, extents: Sequence[Extent]) -> Place:
        """For these bytes, that lie in one leaf, ascending, and at or after the present position:
        whoever reads them gives them to it, whenever, before ``placed`` is called for them."""
        index, parts = extents[0].offset // LEAF_BYTES, []
        for extent in extents:
            first = extent.offset // BLOCK_BYTES - index * LEAF_BLOCKS
            parts.append(slice(first, first + block_count(extent.length)))
        leaf, here = self._open_leaf(index), parts[0]
        numbers: slice | _I64 = here
        if len(parts) > 1:
            numbers = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        known = self._known_leaf(index, leaf, tables=False)
        return Place(
            leaf, numbers, _part(known, numbers, len(leaf.pack)), self._hasher, self._store
        )

    def placed(self, length_bytes: int) -> None:
        """The next bytes were given to their place."""
        self._advance(self._blocks_in(length_bytes))

    def data(self, data: Buffer) -> None:
        """The next bytes of the disk. The last block of the disk is padded with zeroes."""
        length_bytes = memoryview(data).nbytes
        self._blocks_in(length_bytes)
        view, offset = memoryview(_whole_blocks(data)), self._position * BLOCK_BYTES
        for part in Extent(offset, length_bytes, ExtentKind.DATA).cut(LEAF_BYTES):
            first = part.offset - offset
            self.place([part]).fill(view[first : first + block_count(part.length) * BLOCK_BYTES])
            self.placed(part.length)

    def zero(self, length_bytes: int) -> None:
        """The next ``length_bytes`` read as zeroes."""
        self.placed(length_bytes)

    def unchanged(self, length_bytes: int) -> bool:
        """The next ``length_bytes``, inside one leaf, are as in the parent.

        Returns False, having done nothing, where the parent's blocks can't be relied on or
        their ids are not at hand: then the range must be read and given to ``data``.
        """
        count = self._blocks_in(length_bytes)
        index, first = divmod(self._position, LEAF_BLOCKS)
        if first + count > LEAF_BLOCKS:
            raise ValueError("an unchanged range must lie inside one leaf")
        if self._parent is None or self._parent.size_bytes < self.position_bytes + length_bytes:
            return False
        reliable, child = self._parent_child(index)
        if not reliable:
            return False
        if child is None:
            self.zero(length_bytes)
            return True
        if count == self._leaf_blocks(index) == self._parent.leaf_blocks(index):
            self._map.keep(index)
            self._position += count
            return True
        leaf = self._open_leaf(index)
        known = self._known_leaf(index, leaf, tables=True)
        if known is None or len(known.pack) < first + count:
            return False
        here = slice(first, first + count)
        if (known.pack[here] == MISSING).any():
            return False
        leaf.ids[here], leaf.pack[here] = known.ids[here], known.pack[here]
        leaf.ordinal[here] = known.ordinal[here]
        self.placed(length_bytes)
        return True

    def stored(self, ids: Ids, leaf: Leaf, first: int) -> None:
        """The next blocks, inside one leaf, are stored where ``leaf`` has its own from ``first``
        on, and their ids are these: whoever calls has proven both, and that none of it is banned.
        """
        index, start = divmod(self._position, LEAF_BLOCKS)
        if start + len(ids) > self._leaf_blocks(index):
            raise ValueError("stored blocks must lie inside one leaf")
        numbers = np.array([self._index.pack_number(name) for name in leaf.packs], dtype=np.int64)
        there, here = slice(first, first + len(ids)), slice(start, start + len(ids))
        open_leaf = self._open_leaf(index)
        open_leaf.ids[here] = ids
        open_leaf.pack[here] = np.append(numbers, ZERO)[leaf.pack[there]]
        open_leaf.ordinal[here] = leaf.ordinal[there]
        self._advance(len(ids))

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

    def _advance(self, count: int) -> None:
        """Go on by so many blocks; leaves that end there are complete."""
        end = self._position + count
        while self._position < end:
            index = self._position // LEAF_BLOCKS
            leaf_end = index * LEAF_BLOCKS + self._leaf_blocks(index)
            self._position = min(end, leaf_end)
            leaf = self._open.pop(index, None) if self._position == leaf_end else None
            if leaf is not None:
                self._complete(index, leaf)

    def _leaf_blocks(self, index: int) -> int:
        return min(LEAF_BLOCKS, self._blocks - index * LEAF_BLOCKS)

    def _open_leaf(self, index: int) -> _OpenLeaf:
        if index not in self._open:
            self._open[index] = _OpenLeaf(self._leaf_blocks(index))
        return self._open[index]

    def _known_leaf(self, index: int, leaf: _OpenLeaf, *, tables: bool) -> KnownLeaf | None:
        """What the parent has of a leaf, if it can be relied on."""
        if tables not in leaf.known:
            reliable, child = self._parent_child(index)
            use = self._known if reliable and child is not None else None
            leaf.known[tables] = use.leaf(index, tables=tables) if use is not None else None
        return leaf.known[tables]

    def _complete(self, index: int, leaf: _OpenLeaf) -> None:
        if not (leaf.pack != ZERO).any():
            return
        digest = self._hasher.leaf_digest(leaf.ids)[:DIGEST_BYTES]
        self._fingerprints.write(index, leaf.ids)
        reliable, child = self._parent_child(index)
        same = reliable and child is not None and child.digest == digest
        if same and self._known is not None and self._known.stores(index, leaf.ids):
            self._map.keep(index)
            return
        pending = self._encoded(index, leaf, digest)
        self._pending.append(pending)
        self._pending_bytes += len(pending.encoded)
        if self._pending_bytes > _PENDING_MAX_BYTES:
            self._store.finish_pack()
        self.settle()

    def _encoded(self, index: int, leaf: _OpenLeaf, digest: bytes) -> _Pending:
        pack, ordinal = leaf.pack, leaf.ordinal
        used = np.unique(pack[pack != ZERO]).tolist()
        names = tuple(
            _SESSION_NAME if number == SESSION else self._index.pack_name(number) for number in used
        )
        places = np.full(len(pack), ZERO, dtype=np.int64)
        for place, number in enumerate(used):
            places[pack == number] = place
        ours = ordinal[pack == SESSION]
        base, last = (int(ours.min()), int(ours.max())) if len(ours) else (0, -1)
        ordinal[pack == SESSION] -= base
        encoded = encode_leaf(Leaf(names, places, ordinal))
        return _Pending(index, len(pack), digest, encoded.data, encoded.packs, base, last)

    def _put(self, pending: _Pending) -> None:
        leaf = decode_leaf(pending.encoded, pending.packs, pending.blocks)
        if _SESSION_NAME in leaf.packs:
            leaf = self._resolved(leaf, leaf.packs.index(_SESSION_NAME), pending.base)
        self._map.put(pending.index, leaf, pending.digest)

    def _resolved(self, leaf: Leaf, session: int, base: int) -> Leaf:
        ours = leaf.pack == session
        names, place, ordinal = self._store.resolve(leaf.ordinal[ours] + base)
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


def _part(known: KnownLeaf | None, numbers: slice | _I64, blocks: int) -> KnownLeaf | None:
    """What is known of some blocks of a leaf, which may have had fewer when it was known."""
    if known is None:
        return None
    if len(known.pack) < blocks:
        longer = _OpenLeaf(blocks)
        there = slice(len(known.pack))
        longer.ids[there], longer.pack[there] = known.ids, known.pack
        longer.ordinal[there] = known.ordinal
        known = KnownLeaf(longer.ids, longer.pack, longer.ordinal)
    return KnownLeaf(known.ids[numbers], known.pack[numbers], known.ordinal[numbers])
