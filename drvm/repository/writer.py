"""Writing one point's data: blocks -> known? -> frames -> packs.

New blocks get an ordinal in the *session*, 32 x frame + slot, counted over all packs of the
session, when they are claimed; which pack a frame comes to lie in is known only when it has been
compressed. Whoever claims blocks also compresses them, while they are in that processor's cache.
docs/adr/024-pipeline.md.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound
from drvm.repository.crypto import TAG_BYTES, Sealer
from drvm.repository.index import UNKNOWN, Index, SortedIds
from drvm.repository.pack import PackBuilder, Room, make_room
from drvm.repository.uploads import Uploads

SESSION = -2
"""Stands for the pack of a block that this session stored: its ordinal is the session's."""

_I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]
"""Blocks: shape (n, 4096)."""


_Encoded = list[tuple[bytes, int, bytes]]
"""Frames: the ids of their blocks, codec, payload."""


@dataclass(slots=True)
class Tally:
    """``new_bytes``: of blocks that were not stored before; ``stored_bytes``: what they take
    in data packs, compressed and sealed, tables and padding left out."""

    new_bytes: int = 0
    stored_bytes: int = 0


class _Rest:
    """The last new blocks, too few for a frame: they wait for the next ones."""

    __slots__ = ("filled", "ids", "rows")

    def __init__(self) -> None:
        self.rows: Rows = np.empty((FRAME_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        self.ids = zero_ids(FRAME_BLOCKS)
        self.filled = 0

    def fill(self, rows: Rows, numbers: _I64) -> Rows:
        """Copy these behind what is there; returns all."""
        end = self.filled + len(numbers)
        np.take(rows, numbers, axis=0, out=self.rows[self.filled : end], mode="clip")
        return self.rows[:end]


@dataclass(frozen=True, slots=True)
class _Claim:
    """Blocks that one thread compresses, as frames: those of ``rest``, then ``numbers`` of its
    rows. ``turn`` says where they come among all claims; ``ids`` are of all of them."""

    turn: int
    tally: Tally
    rest: _Rest
    numbers: _I64
    ids: Ids

    def frames(self, rows: Rows) -> Iterator[Rows]:
        """Each is good until the next is asked for."""
        at = 0
        if self.rest.filled:
            at = FRAME_BLOCKS - self.rest.filled
            yield self.rest.fill(rows, self.numbers[:at])
            self.rest.filled = 0
        for first in range(at, len(self.numbers), FRAME_BLOCKS):
            numbers = self.numbers[first : first + FRAME_BLOCKS]
            start, end = int(numbers[0]), int(numbers[-1]) + 1
            if end - start == len(numbers):  # they ascend: side by side
                yield rows[start:end]
            else:
                yield self.rest.fill(rows, numbers)


class BlockStore:
    """Takes blocks, stores those that are new. ``store`` is for any number of threads at once,
    all else for one; ``begin`` only while nothing is being stored.

    ``level`` is the zstd level. Blocks are looked up in ``index``, which is told of each pack as
    soon as it has a name, and among those of packs that are not finished yet. Unless ``verify``
    is off, every frame is decompressed and compared before it is sealed, and opened again after.

    The order of frames is that of the claims: so ordinals need no table, and what the next disk
    asks for side by side lies side by side.

    Memory: one pack that fills, those that ``uploads`` has, and the frames of as many claims as
    there are threads; whoever calls waits while ``uploads`` has no room. What went wrong once is
    raised by every call after it.
    """

    def __init__(
        self, sealer: Sealer, index: Index, uploads: Uploads, level: int, *, verify: bool = True
    ) -> None:
        self._sealer = sealer
        self._index = index
        self._uploads = uploads
        self._level = level
        self._verify = verify
        self._failed: BaseException | None = None
        self._tally = Tally()

        self._known = threading.Lock()  # what is known and claimed; taken while _packing is held
        self._recent = SortedIds()  # session ordinals of blocks in packs that are not finished
        self._next = 0  # the session ordinal of the next new block
        self._rest = _Rest()
        self._claims = 0
        self._names: list[bytes] = []  # of the finished packs
        self._first_frames = array("q")  # of each in the session
        self._builder_first = 0

        self._packing = threading.Condition()  # what goes into packs, in turn
        self._turn = 0
        self._early: dict[int, tuple[Tally, _Encoded]] = {}  # claims whose turn has not come
        self._spare: deque[_Rest] = deque()
        self._rooms: deque[Room] = deque()  # of packs that are stored
        self._room, self._builder = self._new_builder()

    def begin(self, tally: Tally) -> None:
        """What is stored from now on is counted there. Frames don't mix tallies; packs do."""
        self._store_rest()
        self._tally = tally

    def store(self, rows: Rows, ids: Ids, wanted: _I64) -> tuple[_I64, _I64]:
        """Some hundred blocks and their ids in, and which of them are wanted, ascending, none of
        those zero; (pack, ordinal) of the wanted out, with ``SESSION`` or the index's number as
        pack. New ones are on their way when this returns, but for less than a frame."""
        ids = ids[wanted]
        with self._failing():
            with self._known:
                self._raise_failed()
                pack, ordinal = self._look_up(ids)
                new = np.flatnonzero(pack == UNKNOWN)
                claim = None
                if len(new):
                    first, place = _first_of_each(ids[new])
                    pack[new], ordinal[new] = SESSION, self._next + place
                    new = new[first]
                    claim = self._claim(rows, wanted[new], ids[new])
            if claim is not None:
                self._finish(claim, rows)
        return pack, ordinal

    def frontier(self) -> int:
        """Session ordinals below this lie in finished packs."""
        return self._builder_first * FRAME_BLOCKS

    def resolve(self, ordinals: _I64) -> tuple[tuple[bytes, ...], _I64, _I64]:
        """For session ordinals below the frontier: (packs, which of those, ordinal in it)."""
        with self._known:
            first = np.frombuffer(self._first_frames, dtype=np.int64)
            place = np.searchsorted(first, ordinals // FRAME_BLOCKS, side="right") - 1
            before = first[place]
            del first  # the array can't grow while it is looked at
        used, which = np.unique(place, return_inverse=True)
        names = tuple(self._names[number] for number in used.tolist())
        return names, which, ordinals - before * FRAME_BLOCKS

    def finish_pack(self) -> None:
        """Close the present frame and pack; the frontier moves behind every block so far."""
        self._store_rest()
        claims = self._claims
        with self._failing(), self._packing:
            self._packing.wait_for(lambda: self._turn >= claims or self._failed is not None)
            self._raise_failed()
            self._rotate()

    def data_packs(self) -> list[bytes]:
        return self._names

    # -- what is known: under _known ------------------------------------------------------------
    def _look_up(self, ids: Ids) -> tuple[_I64, _I64]:
        found = self._index.lookup(ids)
        pack, ordinal = found.pack, found.ordinal
        unknown = np.flatnonzero(pack == UNKNOWN)
        if len(unknown):
            ours = self._recent.find(ids[unknown])
            recent = unknown[ours >= 0]
            pack[recent], ordinal[recent] = SESSION, ours[ours >= 0]
        return pack, ordinal

    def _claim(self, rows: Rows, numbers: _I64, ids: Ids) -> _Claim | None:
        """These blocks, all new and different, are the caller's to compress, behind what rested;
        what does not fill a frame rests. ``None`` where that is all."""
        self._recent.add(ids, self._next + np.arange(len(numbers)))
        self._next += len(numbers)
        self._tally.new_bytes += len(numbers) * BLOCK_BYTES
        whole = (self._rest.filled + len(numbers)) // FRAME_BLOCKS * FRAME_BLOCKS
        claim, mine = None, 0
        if whole:
            mine = whole - self._rest.filled
            claim = self._claim_rest(numbers[:mine], ids[:mine])
        rest, numbers = self._rest, numbers[mine:]
        filled = len(rest.fill(rows, numbers))
        rest.ids[rest.filled : filled] = ids[mine:]
        rest.filled = filled
        return claim

    def _claim_rest(self, numbers: _I64, ids: Ids) -> _Claim:
        rest, turn = self._rest, self._claims
        self._claims += 1
        self._rest = self._spare.pop() if self._spare else _Rest()
        return _Claim(
            turn, self._tally, rest, numbers, np.concatenate((rest.ids[: rest.filled], ids))
        )

    def _store_rest(self) -> None:
        """As a frame that is not full: the next block begins another."""
        with self._failing():
            with self._known:
                self._raise_failed()
                if not self._rest.filled:
                    return
                self._next = -(-self._next // FRAME_BLOCKS) * FRAME_BLOCKS
                claim = self._claim_rest(np.zeros(0, dtype=np.int64), zero_ids(0))
            self._finish(claim, claim.rest.rows)

    # -- what goes into packs ---------------------------------------------------------------------
    def _finish(self, claim: _Claim, rows: Rows) -> None:
        """Compress what was claimed and put it into packs: each frame at once if it is this
        claim's turn, so that it is sealed while it is in the cache."""
        encoded: _Encoded = []
        ids, step = claim.ids.tobytes(), FRAME_BLOCKS * ID_BYTES
        for number, frame in enumerate(claim.frames(rows)):
            encoded.append((ids[number * step : (number + 1) * step], *self._encode(frame)))
            if self._turn == claim.turn:  # nobody else moves it on
                with self._packing:
                    self._pack(claim.tally, encoded)
        self._spare.append(claim.rest)
        with self._packing:
            self._early[claim.turn] = claim.tally, encoded
            while self._turn in self._early:
                self._pack(*self._early.pop(self._turn))
                self._turn += 1
            self._packing.notify_all()

    def _encode(self, frame: Rows) -> tuple[int, bytes]:
        plain = frame.reshape(-1).data
        codec, payload = frames.encode(plain, self._level)
        if self._verify and not frames.holds(codec, payload, plain):
            raise DamageFound("a frame changed in memory while it was compressed")
        return codec, payload

    def _pack(self, tally: Tally, encoded: _Encoded) -> None:
        """Takes all of it."""
        self._raise_failed()
        for ids, codec, payload in encoded:
            blocks = len(ids) // ID_BYTES
            if not self._builder.has_room(len(payload), blocks):
                self._rotate()
            self._builder.add(codec, payload, blocks * BLOCK_BYTES, ids, verify=self._verify)
            tally.stored_bytes += len(payload) + TAG_BYTES
        encoded.clear()

    def _new_builder(self) -> tuple[Room, PackBuilder]:
        room = self._rooms.popleft() if self._rooms else make_room()
        return room, PackBuilder(self._sealer, "data", room)

    def _rotate(self) -> None:
        if not len(self._builder):
            return
        builder, room = self._builder, self._room
        pack = builder.finish()
        with self._known:  # a block is in the index, or among the recent ones
            self._names.append(pack.name)
            self._first_frames.append(self._builder_first)
            self._index.add(pack.name, *builder.blocks())
            self._builder_first += len(builder)
            self._recent.drop_below(self.frontier())
        self._uploads.put(pack, functools.partial(self._rooms.append, room))
        self._room, self._builder = self._new_builder()

    # -- errors -----------------------------------------------------------------------------------
    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever is raised in here ends the session: also for threads that wait for a turn."""
        try:
            yield
        except BaseException as error:
            with self._packing:
                self._failed = self._failed or error
                self._packing.notify_all()
            raise

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed


def _first_of_each(ids: Ids) -> tuple[_I64, _I64]:
    """(first places of the ids that differ, ascending; for each id which of those it is)."""
    everyone = np.arange(len(ids))
    keys = np.sort(ids[:, 0])
    if (keys[1:] != keys[:-1]).all():
        return everyone, everyone
    _, first, inverse = np.unique(ids[:, 0], return_index=True, return_inverse=True)
    owner = first[inverse]
    # of two that share their first word only, one in 2^64, each stands for itself
    owner = np.where(ids[owner, 1] == ids[:, 1], owner, everyone)
    leads = owner == everyone
    return np.flatnonzero(leads), (np.cumsum(leads) - 1)[owner]
