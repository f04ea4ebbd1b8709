"""Runs: where the blocks of one leaf (64 MiB of a disk) are stored, in columns.

In memory a leaf is two arrays with an entry per block. On disk it is a list of runs (first
block, pack, ordinal, count), each field a column of its own and split into byte planes: on an
aged disk that compresses to a quarter of plain 12-byte records. docs/FORMAT.md, "Leaves".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import LEAF_BLOCKS

PACK_NAME_BYTES = 32
MAX_ORDINAL = (1 << 31) - 1
"""Steps between two ordinals then fit in 32 bits; a session of 8 TiB of new blocks gets there."""

ZERO = -1
"""Value of ``Leaf.pack`` for a block that reads as zeroes."""

_HEADER = struct.Struct("<II")
_MANY_RUNS = 256  # below that, ten codes take more than they save
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


def encode_leaf(leaf: Leaf) -> bytes:
    """As stored. Packs that no block uses are left out, so equal leaves have equal bytes.

    Raises ``ValueError`` for an ordinal that the columns can't hold.
    """
    if len(leaf.pack) and not 0 <= leaf.ordinal.min() <= leaf.ordinal.max() <= MAX_ORDINAL:
        raise ValueError("leaf has an ordinal outside of its bounds")
    used, first_use = np.unique(leaf.pack[leaf.pack >= 0], return_index=True)
    used = used[np.argsort(first_use)]
    renumbered = np.full(len(leaf.packs) + 1, ZERO, dtype=np.int64)
    renumbered[used] = np.arange(len(used))
    pack = renumbered[leaf.pack]  # ZERO is -1: the last entry

    start, count = _boundaries(pack, leaf.ordinal)
    run_pack, run_ordinal = pack[start], leaf.ordinal[start]
    gap = start - np.concatenate(([0], (start + count)[:-1]))
    step = _steps(run_pack, run_ordinal, count)
    zigzag = (step << 1) ^ (step >> 63)
    return b"".join(
        (
            _HEADER.pack(len(used), len(start)),
            *(leaf.packs[index] for index in used.tolist()),
            _planes(gap, np.uint16),
            _planes(count - 1, np.uint16),
            _planes(run_pack, np.uint16),
            _planes(zigzag, np.uint32),
        )
    )


def columns(encoded: bytes) -> list[int]:
    """Where the bytes of an encoded leaf change their nature: each plane of bytes is compressed
    best by itself."""
    packs, runs = _HEADER.unpack_from(encoded)
    first = _HEADER.size + packs * PACK_NAME_BYTES
    return [first + plane * runs for plane in range(10)] if runs >= _MANY_RUNS else []


def decode_leaf(data: bytes, blocks: int = LEAF_BLOCKS) -> Leaf:
    """The inverse, for a leaf of ``blocks`` blocks. Raises ``ValueError`` on anything that
    ``encode_leaf`` can't have written; the work is bounded by ``len(data)`` and ``blocks``."""
    if len(data) < _HEADER.size:
        raise ValueError("leaf is truncated")
    pack_count, run_count = _HEADER.unpack_from(data)
    expected = _HEADER.size + pack_count * PACK_NAME_BYTES + run_count * 10
    if run_count > blocks or pack_count > blocks or len(data) != expected:
        raise ValueError("leaf has the wrong length")
    names = data[_HEADER.size : _HEADER.size + pack_count * PACK_NAME_BYTES]
    packs = tuple(names[i : i + PACK_NAME_BYTES] for i in range(0, len(names), PACK_NAME_BYTES))
    at = _HEADER.size + len(names)
    gap = _from_planes(data, at, run_count, np.uint16)
    count = _from_planes(data, at + 2 * run_count, run_count, np.uint16) + 1
    run_pack = _from_planes(data, at + 4 * run_count, run_count, np.uint16)
    zigzag = _from_planes(data, at + 6 * run_count, run_count, np.uint32)

    start = np.cumsum(gap + count) - count
    if run_count and (int(start[-1] + count[-1]) > blocks or int(run_pack.max()) >= pack_count):
        raise ValueError("leaf has a run outside of its bounds")
    run_ordinal = _undo_steps(run_pack, (zigzag >> 1) ^ -(zigzag & 1), count)
    run_last = run_ordinal + count - 1
    if run_count and (int(run_ordinal.min()) < 0 or int(run_last.max()) > MAX_ORDINAL):
        raise ValueError("leaf has an ordinal outside of its bounds")

    pack = np.full(blocks, ZERO, dtype=np.int64)
    ordinal = np.zeros(blocks, dtype=np.int64)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    where = np.repeat(start, count) + within
    pack[where] = np.repeat(run_pack, count)
    ordinal[where] = np.repeat(run_ordinal, count) + within
    return Leaf(packs, pack, ordinal)


def _boundaries(pack: _I64, ordinal: _I64) -> tuple[_I64, _I64]:
    """First block and length of each run of stored blocks."""
    stored = pack >= 0
    joined = np.zeros(len(pack), dtype=np.bool_)
    joined[1:] = stored[1:] & (pack[1:] == pack[:-1]) & (ordinal[1:] == ordinal[:-1] + 1)
    start = np.flatnonzero(stored & ~joined)
    following = np.append(np.flatnonzero(~joined), len(pack))
    count = following[np.searchsorted(following, start, side="right")] - start
    return start, count


def _steps(run_pack: _I64, run_ordinal: _I64, count: _I64) -> _I64:
    """Each run's ordinal less the end of the run before it in the same pack."""
    order = np.argsort(run_pack, kind="stable")
    sorted_pack = run_pack[order]
    ends = (run_ordinal + count)[order]
    previous = np.zeros(len(order), dtype=np.int64)
    previous[1:] = np.where(sorted_pack[1:] == sorted_pack[:-1], ends[:-1], 0)
    step = np.empty(len(order), dtype=np.int64)
    step[order] = run_ordinal[order] - previous
    return step


def _undo_steps(run_pack: _I64, step: _I64, count: _I64) -> _I64:
    order = np.argsort(run_pack, kind="stable")
    sorted_pack = run_pack[order]
    if not len(order):
        return step
    moved = np.cumsum(step[order] + count[order])  # the end of each run, over all packs
    first = np.flatnonzero(np.concatenate(([True], sorted_pack[1:] != sorted_pack[:-1])))
    before = np.concatenate(([0], moved))[first]
    lengths = np.diff(np.append(first, len(order)))
    ordinal = np.empty(len(order), dtype=np.int64)
    ordinal[order] = moved - np.repeat(before, lengths) - count[order]
    return ordinal


def _planes(values: _I64, dtype: type[np.unsignedinteger]) -> bytes:
    little = values.astype(np.dtype(dtype).newbyteorder("<"))
    return little.view(np.uint8).reshape(len(values), little.itemsize).T.tobytes()


def _from_planes(data: bytes, at: int, count: int, dtype: type[np.unsignedinteger]) -> _I64:
    width = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, dtype=np.uint8, count=count * width, offset=at)
    little = np.ascontiguousarray(planes.reshape(width, count).T)
    return little.view(np.dtype(dtype).newbyteorder("<")).reshape(count).astype(np.int64)
