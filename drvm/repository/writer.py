"""Writing one point's data: blocks -> known? -> frames -> packs, and the disk maps.

New blocks get an ordinal in the *session*, 32 x frame + slot, counted over all packs of the
session; which pack a frame comes to lie in is known only when it has been compressed. A leaf is
written into the disk map when all packs that it needs are finished and so have a name.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker import frames
from drvm.chunker.blocks import (
    BLOCK_BYTES,
    ID_BYTES,
    BlockHasher,
    Buffer,
    Ids,
    ids_from_bytes,
)
from drvm.chunker.frames import FRAME_BLOCKS, FRAME_BYTES
from drvm.core.errors import DamageFound
from drvm.repository.crypto import TAG_BYTES, Sealer
from drvm.repository.index import UNKNOWN, Index
from drvm.repository.pack import PackBuilder, ordinals_of
from drvm.repository.uploads import Uploads

SESSION = -2
"""Stands for the pack of a block that this session stored: its ordinal is the session's."""

_I64 = npt.NDArray[np.int64]
_FRAMES_IN_FLIGHT = 64
_COMPRESSORS = 2


@dataclass(slots=True)
class Tally:
    """``new_bytes``: of blocks that were not stored before; ``stored_bytes``: what they take
    in data packs, compressed and sealed, tables and padding left out."""

    new_bytes: int = 0
    stored_bytes: int = 0


@dataclass(slots=True)
class _Frame:
    """A frame on its way from the compressors to a pack."""

    tally: Tally
    ids: bytes
    plain_bytes: int
    encoded: Future[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _Packed:
    """A finished data pack: which frames of the session it holds."""

    first_frame: int
    name: bytes


class BlockStore:
    """Takes blocks, stores those that are new. Belongs to one thread.

    ``level`` is the zstd level. Blocks are looked up in ``index``, which is told of each pack as
    soon as it has a name, and among those of packs that are not finished yet. Every frame is
    decompressed and compared before it is sealed.
    """

    def __init__(
        self, sealer: Sealer, hasher: BlockHasher, index: Index, uploads: Uploads, level: int
    ) -> None:
        self._sealer = sealer
        self._hasher = hasher
        self._index = index
        self._uploads = uploads
        self._level = level
        self._pool = ThreadPoolExecutor(_COMPRESSORS, thread_name_prefix="compress")
        self._recent: dict[bytes, int] = {}  # id -> session ordinal, of packs not yet finished
        self._open_frame = bytearray()
        self._open_ids = bytearray()
        self._in_flight: deque[_Frame] = deque()
        self._submitted = 0
        self._builder = PackBuilder(sealer, "data")
        self._builder_ids: list[bytes] = []
        self._builder_first = 0
        self._packs: list[_Packed] = []
        self._tally = Tally()

    def begin(self, tally: Tally) -> None:
        """What is stored from now on is counted there. Frames don't mix tallies; packs do."""
        self._submit()
        self._tally = tally

    def store(self, data: Buffer) -> tuple[Ids, _I64, _I64]:
        """Whole blocks in; (ids, pack, ordinal) out, with ``runs.ZERO`` or ``SESSION`` or the
        index's number as pack. A block that comes twice in one call may be stored twice, where
        a pack is finished in between."""
        view = memoryview(data).cast("B")
        ids = self._hasher.ids(view)
        found = self._index.lookup(ids)
        pack, ordinal = found.pack, found.ordinal
        raw = ids.tobytes()
        for number in np.flatnonzero((pack == UNKNOWN) & ids.any(axis=1)).tolist():
            block_id = raw[number * ID_BYTES : (number + 1) * ID_BYTES]
            pack[number] = SESSION
            ordinal[number] = self._place(
                block_id, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            )
        return ids, pack, ordinal

    def frontier(self) -> int:
        """Session ordinals below this lie in finished packs."""
        return self._builder_first * FRAME_BLOCKS

    def resolve(self, ordinals: _I64) -> tuple[_I64, _I64]:
        """For session ordinals below the frontier: (place of the pack in ``data_packs``,
        ordinal in that pack)."""
        first = np.array([packed.first_frame for packed in self._packs], dtype=np.int64)
        place = np.searchsorted(first, ordinals // FRAME_BLOCKS, side="right") - 1
        return place, ordinals - first[place] * FRAME_BLOCKS

    def finish_pack(self) -> None:
        """Close the present frame and pack; the frontier moves behind every block so far."""
        self._submit()
        self._drain(0)
        self._rotate()

    def data_packs(self) -> list[bytes]:
        return [packed.name for packed in self._packs]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- inside -------------------------------------------------------------------------------
    def _place(self, block_id: bytes, block: memoryview) -> int:
        known = self._recent.get(block_id)
        if known is not None:
            return known
        ordinal = self._submitted * FRAME_BLOCKS + len(self._open_ids) // ID_BYTES
        self._recent[block_id] = ordinal
        self._open_frame += block
        self._open_ids += block_id
        self._tally.new_bytes += BLOCK_BYTES
        if len(self._open_frame) == FRAME_BYTES:
            self._submit()
            self._drain(_FRAMES_IN_FLIGHT)
        return ordinal

    def _submit(self) -> None:
        if not self._open_frame:
            return
        plain, ids = bytes(self._open_frame), bytes(self._open_ids)
        self._open_frame.clear()
        self._open_ids.clear()
        future = self._pool.submit(_encode_and_verify, plain, self._level)
        self._in_flight.append(_Frame(self._tally, ids, len(plain), future))
        self._submitted += 1

    def _drain(self, keep: int) -> None:
        while len(self._in_flight) > keep:
            frame = self._in_flight.popleft()
            codec, payload = frame.encoded.result()
            if not self._builder.has_room(len(payload), len(frame.ids) // ID_BYTES):
                self._rotate()
            self._builder.add(codec, payload, frame.plain_bytes, frame.ids)
            self._builder_ids.append(frame.ids)
            frame.tally.stored_bytes += len(payload) + TAG_BYTES

    def _rotate(self) -> None:
        if not len(self._builder):
            return
        pack = self._builder.finish()
        ids, counts = b"".join(self._builder_ids), [len(i) // ID_BYTES for i in self._builder_ids]
        self._packs.append(_Packed(self._builder_first, pack.name))
        self._index.add(pack.name, ids_from_bytes(ids), ordinals_of(np.array(counts, np.int64)))
        for at in range(0, len(ids), ID_BYTES):
            del self._recent[ids[at : at + ID_BYTES]]
        self._builder_first += len(self._builder)
        self._builder = PackBuilder(self._sealer, "data")
        self._builder_ids = []
        self._uploads.put(pack)


def _encode_and_verify(plain: bytes, level: int) -> tuple[int, bytes]:
    codec, payload = frames.encode(plain, level)
    if frames.decode(codec, payload, len(plain)) != plain:
        raise DamageFound("a frame changed in memory while it was compressed")
    return codec, payload
