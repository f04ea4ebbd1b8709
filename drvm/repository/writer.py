"""Writing one point's data: blocks -> known? -> frames -> packs.

New blocks get an ordinal in the *session*, 32 x frame + slot, counted over all packs of the
session; which pack a frame comes to lie in is known only when it has been compressed.

Everything is done to many blocks at once, in memory that is used again and again: a call of
Python for each block, or a fresh page for each copy, costs more than hashing does.
docs/adr/024-pipeline.md.
"""

from __future__ import annotations

import functools
import os
from array import array
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, Ids, ids_from_bytes, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound
from drvm.repository.crypto import TAG_BYTES, Sealer
from drvm.repository.index import UNKNOWN, Index, SortedIds
from drvm.repository.pack import PackBuilder, Room, make_room, ordinals_of
from drvm.repository.uploads import Uploads

SESSION = -2
"""Stands for the pack of a block that this session stored: its ordinal is the session's."""

_I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]
"""Blocks: shape (n, 4096)."""

_BATCH_FRAMES = 8
"""Frames that one thread compresses at a time: 1 MiB, so that passing them on costs nothing."""
_COMPRESSORS = min(8, max(2, os.cpu_count() or 2))
_BATCHES_IN_FLIGHT = _COMPRESSORS + 4


@dataclass(slots=True)
class Tally:
    """``new_bytes``: of blocks that were not stored before; ``stored_bytes``: what they take
    in data packs, compressed and sealed, tables and padding left out."""

    new_bytes: int = 0
    stored_bytes: int = 0


@dataclass(slots=True)
class _Batch:
    """Up to ``_BATCH_FRAMES`` frames on their way through the compressors to a pack.

    ``rows`` are ``filled`` blocks and free memory behind them; all frames but the last are full.
    """

    tally: Tally
    rows: Rows
    ids: Ids
    filled: int = 0
    encoded: Future[list[tuple[int, bytes]]] | None = None


class BlockStore:
    """Takes blocks, stores those that are new. Belongs to one thread.

    ``level`` is the zstd level. Blocks are looked up in ``index``, which is told of each pack as
    soon as it has a name, and among those of packs that are not finished yet. Unless ``verify``
    is off, every frame is decompressed and compared before it is sealed, and opened again after.

    Memory: ``_BATCHES_IN_FLIGHT`` MiB of blocks, one pack that fills, and those that ``uploads``
    has; whoever calls waits while there is no more room.
    """

    def __init__(
        self, sealer: Sealer, index: Index, uploads: Uploads, level: int, *, verify: bool = True
    ) -> None:
        self._sealer = sealer
        self._index = index
        self._uploads = uploads
        self._level = level
        self._verify = verify
        self._pool = ThreadPoolExecutor(_COMPRESSORS, thread_name_prefix="compress")
        self._recent = SortedIds()  # session ordinals of blocks in packs that are not finished
        self._next = 0  # the session ordinal of the next new block
        self._tally = Tally()
        self._spare: list[tuple[Rows, Ids]] = []
        self._batch = self._empty_batch()
        self._in_flight: deque[_Batch] = deque()
        self._rooms: deque[Room] = deque()  # of packs that are stored
        self._room, self._builder = self._new_builder()
        self._builder_ids: list[bytes] = []
        self._builder_first = 0
        self._names: list[bytes] = []  # of the finished packs
        self._first_frames = array("q")  # of each in the session

    def begin(self, tally: Tally) -> None:
        """What is stored from now on is counted there. Frames don't mix tallies; packs do."""
        self._submit()
        self._tally = self._batch.tally = tally

    def store(self, rows: Rows, ids: Ids, wanted: _I64) -> tuple[_I64, _I64]:
        """Some thousand blocks and their ids in, and which of them are wanted, none of those
        zero; (pack, ordinal) of the wanted out, with ``SESSION`` or the index's number as pack.
        """
        ids = ids[wanted]
        found = self._index.lookup(ids)
        pack, ordinal = found.pack, found.ordinal
        unknown = np.flatnonzero(pack == UNKNOWN)
        ours = self._recent.find(ids[unknown])
        recent = unknown[ours >= 0]
        pack[recent], ordinal[recent] = SESSION, ours[ours >= 0]
        new = np.flatnonzero(pack == UNKNOWN)
        if len(new):
            first, place = _first_of_each(ids[new])
            pack[new], ordinal[new] = SESSION, self._next + place
            self._place(rows, wanted[new[first]], ids[new[first]])
        return pack, ordinal

    def frontier(self) -> int:
        """Session ordinals below this lie in finished packs."""
        return self._builder_first * FRAME_BLOCKS

    def resolve(self, ordinals: _I64) -> tuple[tuple[bytes, ...], _I64, _I64]:
        """For session ordinals below the frontier: (packs, which of those, ordinal in it)."""
        first = np.frombuffer(self._first_frames, dtype=np.int64)
        used, which = np.unique(
            np.searchsorted(first, ordinals // FRAME_BLOCKS, side="right") - 1, return_inverse=True
        )
        names = tuple(self._names[number] for number in used.tolist())
        return names, which, ordinals - first[used[which]] * FRAME_BLOCKS

    def finish_pack(self) -> None:
        """Close the present frame and pack; the frontier moves behind every block so far."""
        self._submit()
        self._drain(0)
        self._rotate()

    def data_packs(self) -> list[bytes]:
        return self._names

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- inside -------------------------------------------------------------------------------
    def _place(self, rows: Rows, numbers: _I64, ids: Ids) -> None:
        """Copy these blocks, all new and different, behind those of the present batch."""
        self._recent.add(ids, self._next + np.arange(len(numbers)))
        self._next += len(numbers)
        self._tally.new_bytes += len(numbers) * BLOCK_BYTES
        while len(numbers):
            batch = self._batch
            take = min(len(numbers), len(batch.rows) - batch.filled)
            end = batch.filled + take
            np.take(rows, numbers[:take], axis=0, out=batch.rows[batch.filled : end], mode="clip")
            batch.ids[batch.filled : end] = ids[:take]
            batch.filled = end
            numbers, ids = numbers[take:], ids[take:]
            if end == len(batch.rows):
                self._submit()
                self._drain(_BATCHES_IN_FLIGHT - 1)

    def _submit(self) -> None:
        batch = self._batch
        if not batch.filled:
            return
        rows = batch.rows[: batch.filled]
        batch.encoded = self._pool.submit(_encode, rows, self._level, self._verify)
        self._in_flight.append(batch)
        if batch.filled % FRAME_BLOCKS:  # the last frame stays as it is: the next block begins one
            self._next = -(-self._next // FRAME_BLOCKS) * FRAME_BLOCKS
        self._batch = self._empty_batch()

    def _empty_batch(self) -> _Batch:
        if not self._spare:
            blocks = _BATCH_FRAMES * FRAME_BLOCKS
            self._spare.append((np.empty((blocks, BLOCK_BYTES), dtype=np.uint8), zero_ids(blocks)))
        return _Batch(self._tally, *self._spare.pop())

    def _drain(self, keep: int) -> None:
        while len(self._in_flight) > keep:
            batch = self._in_flight.popleft()
            assert batch.encoded is not None
            for number, (codec, payload) in enumerate(batch.encoded.result()):
                first = number * FRAME_BLOCKS
                ids = batch.ids[first : min(first + FRAME_BLOCKS, batch.filled)]
                if not self._builder.has_room(len(payload), len(ids)):
                    self._rotate()
                plain_bytes = len(ids) * BLOCK_BYTES
                raw = ids.tobytes()
                self._builder.add(codec, payload, plain_bytes, raw, verify=self._verify)
                self._builder_ids.append(raw)
                batch.tally.stored_bytes += len(payload) + TAG_BYTES
            self._spare.append((batch.rows, batch.ids))

    def _new_builder(self) -> tuple[Room, PackBuilder]:
        room = self._rooms.popleft() if self._rooms else make_room()
        return room, PackBuilder(self._sealer, "data", room)

    def _rotate(self) -> None:
        if not len(self._builder):
            return
        pack = self._builder.finish()
        ids, counts = b"".join(self._builder_ids), [len(i) // ID_BYTES for i in self._builder_ids]
        self._names.append(pack.name)
        self._first_frames.append(self._builder_first)
        self._index.add(pack.name, ids_from_bytes(ids), ordinals_of(np.array(counts, np.int64)))
        self._builder_first += len(self._builder)
        self._recent.drop_below(self.frontier())
        self._uploads.put(pack, functools.partial(self._rooms.append, self._room))
        self._room, self._builder = self._new_builder()
        self._builder_ids = []


def _first_of_each(ids: Ids) -> tuple[_I64, _I64]:
    """(first places of the ids that differ, ascending; for each id which of those it is)."""
    _, first, inverse = np.unique(ids[:, 0], return_index=True, return_inverse=True)
    everyone = np.arange(len(ids))
    if len(first) == len(ids):
        return everyone, everyone
    owner = first[inverse]
    # of two that share their first word only, one in 2^64, each stands for itself
    owner = np.where(ids[owner, 1] == ids[:, 1], owner, everyone)
    leads = owner == everyone
    return np.flatnonzero(leads), (np.cumsum(leads) - 1)[owner]


def _encode(rows: Rows, level: int, verify: bool) -> list[tuple[int, bytes]]:
    """(codec, payload) of each frame."""
    encoded = []
    for first in range(0, len(rows), FRAME_BLOCKS):
        plain = rows[first : first + FRAME_BLOCKS].reshape(-1)
        codec, payload = frames.encode(plain.data, level)
        if verify:
            again = np.frombuffer(frames.decode(codec, payload, len(plain)), dtype=np.uint64)
            if not np.array_equal(again, plain.view(np.uint64)):
                raise DamageFound("a frame changed in memory while it was compressed")
        encoded.append((codec, payload))
    return encoded
