"""Runs: where the blocks of one leaf (64 MiB of a disk) are stored, in columns.

In memory a leaf is two arrays with an entry per block. On disk it is a list of runs (first
block, pack, number of blocks, ordinal), each field a column of its own and split into byte planes.
Some columns are in the order of the disk and some in that of the packs, whichever makes neighbours
more alike; the names of the packs stand in the node above. On an aged disk all that compresses to
a fifth of plain 12-byte records. docs/FORMAT.md, "Leaves".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import LEAF_BLOCKS

PACK_NAME_BYTES = 32
MAX_ORDINAL = (1 << 31) - 1
"""A session of 8 TiB of new blocks gets there."""

ZERO = -1
"""Value of ``Leaf.pack`` for a block that reads as zeroes."""

_HEADER = struct.Struct("<II")
_PACK_BYTES, _RUN_BYTES = 5, 10  # as stored, of each
_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leaf:
    """The addresses of up to 16384 blocks.

    ``pack``: int64, index into ``packs``, or ``ZERO``; ``ordinal``: int64, the block's place in
    its pack (32 x frame + slot), 0 for zero blocks; ``packs``: 32-byte names.
    """

    packs: tuple[bytes, ...]
    pack: _I64
    ordinal: _I64


@dataclass(frozen=True, slots=True)
class EncodedLeaf:
    """``columns``: what is stored, cut where its bytes change their nature. ``packs``: the names
    that the blocks need, ascending; they are not stored in the leaf."""

    columns: tuple[bytes, ...]
    packs: tuple[bytes, ...]

    @property
    def data(self) -> bytes:
        return b"".join(self.columns)


def encode_leaf(leaf: Leaf) -> EncodedLeaf:
    """As stored. Equal leaves have equal bytes, whatever the order of their pack table, and
    whatever stands in it twice.

    Raises ``ValueError`` for an ordinal that the columns can't hold.
    """
    if len(leaf.pack) and not 0 <= leaf.ordinal.min() <= leaf.ordinal.max() <= MAX_ORDINAL:
        raise ValueError("leaf has an ordinal outside of its bounds")
    used = np.unique(leaf.pack[leaf.pack >= 0]).tolist()
    packs = sorted({leaf.packs[number] for number in used})
    places = {name: place for place, name in enumerate(packs)}
    renumbered = np.full(len(leaf.packs) + 1, ZERO, dtype=np.int64)
    renumbered[used] = [places[leaf.packs[number]] for number in used]
    pack = renumbered[leaf.pack]  # ZERO is -1: the last entry

    start, count = boundaries(pack, leaf.ordinal)
    gap = start - np.concatenate(([0], (start + count)[:-1]))
    runs = _ByPack.of(pack[start], start, count)
    ordinal = leaf.ordinal[start[runs.order]]
    dense = np.diff(ordinal, prepend=0) - runs.before
    dense[runs.first] = 0
    placed = dense - runs.skipped
    is_placed = runs.nonzero(placed) < runs.nonzero(dense)
    step = np.where(is_placed[runs.pack], placed, dense).astype(np.int32).astype(np.int64)
    return EncodedLeaf(
        (
            _HEADER.pack(len(packs), len(start)),
            is_placed.astype(np.uint8).tobytes(),
            *_planes(ordinal[runs.first], np.uint32),
            *_planes(gap, np.uint16),
            *_planes(pack[start], np.uint16),
            *_planes(count[runs.order] - 1, np.uint16),
            *_planes(step << 1 ^ step >> 63, np.uint32),
        ),
        tuple(packs),
    )


def decode_leaf(data: bytes, packs: tuple[bytes, ...], blocks: int = LEAF_BLOCKS) -> Leaf:
    """The inverse, for a leaf of ``blocks`` blocks that needs ``packs``, ascending. Raises
    ``ValueError`` on anything that ``encode_leaf`` can't have written; the work is bounded by
    ``len(data)`` and ``blocks``."""
    if len(data) < _HEADER.size:
        raise ValueError("leaf is truncated")
    pack_count, run_count = _HEADER.unpack_from(data)
    if pack_count != len(packs):
        raise ValueError("leaf needs another number of packs than the node above it says")
    expected = _HEADER.size + pack_count * _PACK_BYTES + run_count * _RUN_BYTES
    if not pack_count <= run_count <= blocks or len(data) != expected:
        raise ValueError("leaf has the wrong length")
    columns = _Columns(data, _HEADER.size)
    is_placed = columns.take(pack_count, np.uint8)
    first_ordinal = columns.take(pack_count, np.uint32)
    gap = columns.take(run_count, np.uint16)
    run_pack = columns.take(run_count, np.uint16)
    sorted_count = columns.take(run_count, np.uint16) + 1
    zigzag = columns.take(run_count, np.uint32)

    order = np.argsort(run_pack, kind="stable")
    count = np.empty(run_count, dtype=np.int64)
    count[order] = sorted_count
    start = np.cumsum(gap + count) - count
    if is_placed.max(initial=0) > 1 or int((start + count).max(initial=0)) > blocks:
        raise ValueError("leaf has a run outside of its bounds")
    runs = _ByPack.of(run_pack, start, count)
    if len(runs.first) != pack_count or int(run_pack.max(initial=0)) >= max(pack_count, 1):
        raise ValueError("leaf has no run of a pack, or one of a pack that it does not need")
    step = (zigzag >> 1) ^ -(zigzag & 1)
    moved = np.cumsum(step + runs.before + runs.skipped * is_placed[runs.pack])
    moved += np.repeat(first_ordinal - moved[runs.first] + step[runs.first], runs.lengths)
    run_ordinal = np.empty(run_count, dtype=np.int64)
    run_ordinal[order] = moved & 0xFFFFFFFF
    if run_count and int((run_ordinal + count).max()) > MAX_ORDINAL + 1:
        raise ValueError("leaf has an ordinal outside of its bounds")

    pack = np.full(blocks, ZERO, dtype=np.int64)
    ordinal = np.zeros(blocks, dtype=np.int64)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    where = np.repeat(start, count) + within
    pack[where] = np.repeat(run_pack, count)
    ordinal[where] = np.repeat(run_ordinal, count) + within
    return Leaf(packs, pack, ordinal)


@dataclass(frozen=True, slots=True)
class _ByPack:
    """Runs in the order of their packs, those of a pack in the order of the disk.

    ``order``: their places on the disk; ``pack``: of each; ``first``: where each pack begins, and
    ``lengths``: how many runs it has. ``before``: blocks of the run before in the same pack, and
    ``skipped``: blocks between the two on the disk; both 0 for a pack's first run.
    """

    order: _I64
    pack: _I64
    first: _I64
    lengths: _I64
    before: _I64
    skipped: _I64

    @staticmethod
    def of(pack: _I64, start: _I64, count: _I64) -> _ByPack:
        order = np.argsort(pack, kind="stable")
        pack, start, count = pack[order], start[order], count[order]
        first = np.flatnonzero(np.diff(pack, prepend=-1))
        before = np.roll(count, 1)
        skipped = start - np.roll(start + count, 1)
        before[first] = skipped[first] = 0
        lengths = np.diff(np.append(first, len(order)))
        return _ByPack(order, pack, first, lengths, before, skipped)

    def nonzero(self, values: _I64) -> _I64:
        """How many of each pack's are not 0."""
        return np.bincount(self.pack[values != 0], minlength=len(self.first))


def boundaries(pack: _I64, ordinal: _I64) -> tuple[_I64, _I64]:
    """First block and length of each run of stored blocks."""
    stored = pack >= 0
    joined = np.zeros(len(pack), dtype=np.bool_)
    joined[1:] = stored[1:] & (pack[1:] == pack[:-1]) & (ordinal[1:] == ordinal[:-1] + 1)
    start = np.flatnonzero(stored & ~joined)
    following = np.append(np.flatnonzero(~joined), len(pack))
    count = following[np.searchsorted(following, start, side="right")] - start
    return start, count


def _planes(values: _I64, dtype: type[np.unsignedinteger]) -> list[bytes]:
    little = values.astype(np.dtype(dtype).newbyteorder("<"))
    planes = little.view(np.uint8).reshape(len(values), little.itemsize).T
    return [plane.tobytes() for plane in planes]


class _Columns:
    """Reads columns one behind the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, count: int, dtype: type[np.unsignedinteger]) -> _I64:
        width = np.dtype(dtype).itemsize
        planes = np.frombuffer(self._data, np.uint8, count * width, self._at)
        self._at += count * width
        little = np.ascontiguousarray(planes.reshape(width, count).T)
        return little.view(np.dtype(dtype).newbyteorder("<")).reshape(count).astype(np.int64)
