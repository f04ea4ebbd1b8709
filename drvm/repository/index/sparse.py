"""The sparse index: hooks lead to segments, and what lies around a block is found with it.

Per unique TiB of blocks the hooks take 0.2 GB of local files, of which a bounded part is
resident. docs/adr/023-sparse-index.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids
from drvm.core.units import GIB, MIB
from drvm.repository.index import Addresses
from drvm.repository.index.batch import Batch, Place
from drvm.repository.index.hooks import (
    SEGMENT_BLOCKS,
    Keys,
    Names,
    PackHooks,
    hooks_of,
    is_hook,
)
from drvm.repository.index.levels import Levels
from drvm.repository.index.tables import CacheSize, IdTables
from drvm.repository.trust import BelieveAll, Judge

_I64 = npt.NDArray[np.int64]
_TRAIL = 16


@dataclass(frozen=True, slots=True)
class IndexLimits:
    """``memory_bytes``: of hooks that are held in memory though files have them.
    ``cache_bytes``: of files with id tables."""

    memory_bytes: int = 64 * MIB
    cache_bytes: int = 8 * GIB


DEFAULT_LIMITS = IndexLimits()


@dataclass(frozen=True, slots=True)
class IndexSize:
    """``index_bytes``: of the hooks' files."""

    runs: int
    packs: int
    hooks: int
    index_bytes: int
    tables: CacheSize


class SparseIndex:
    """``levels`` holds the hooks, ``tables`` the ids. Fulfils ``Index``.

    Whatever hooks say, an address is given only for an id that the pack's own authenticated table
    has there, where ``trust`` believes that table.
    """

    def __init__(self, levels: Levels, tables: IdTables, trust: Judge | None = None) -> None:
        self._levels = levels
        self._tables = tables
        self._trust = trust or BelieveAll()
        self._lock = threading.RLock()
        self._names: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._trail: list[Place] = []  # segments where the last batch ended
        self._next: tuple[int, int] | None = None  # pack and ordinal where it would go on
        self._untold: dict[bytes, bool] = {}

    # -- Index --------------------------------------------------------------------------------
    def lookup(self, ids: Ids) -> Addresses:
        with self._lock:
            straight = self._straight(ids)
            if len(straight.pack) == len(ids):
                found = straight
            else:
                batch = Batch(ids[len(straight.pack) :])
                if self._levels:
                    self._search(batch)
                rest = batch.result()
                found = Addresses(
                    np.concatenate((straight.pack, rest.pack)),
                    np.concatenate((straight.ordinal, rest.ordinal)),
                )
            self._remember(found)
            return found

    def pack_name(self, number: int) -> bytes:
        return self._names[number]

    def pack_number(self, name: bytes) -> int:
        with self._lock:
            if name not in self._numbers:
                self._numbers[name] = len(self._names)
                self._names.append(name)
            return self._numbers[name]

    def stored_ids(self, number: int, ordinals: _I64) -> Ids | None:
        with self._lock:
            name = self._names[number]
            if not self._levels.knows(name):
                return None
            for segment in np.unique(ordinals // SEGMENT_BLOCKS).tolist():
                if not self._trust.believes(name, segment):
                    return None
            return self._tables.at(name, ordinals)

    def add(self, name: bytes, ids: Ids, ordinals: _I64) -> None:
        with self._lock:
            self._trust.made_here(name)
            self.take(name, ids, ordinals)
            self._untold[name] = len(ids) > 0

    def forget(self, names: Iterable[bytes]) -> None:
        with self._lock:
            gone = set(names)
            self._levels.shun(gone)
            self._trail, self._next = [], None
            for name in gone:
                self._untold.pop(name, None)

    # -- bringing it up to date ---------------------------------------------------------------
    def known(self) -> set[bytes]:
        """The packs that look-ups may find. For small repositories."""
        with self._lock:
            return self._levels.known()

    def sync(self, present: Names, shunned: frozenset[bytes]) -> list[bytes]:
        """The objects that are there: no others are found from now on, nor ``shunned`` ones.
        Also takes in what other processes added, and merges. Returns what is unknown."""
        with self._lock:
            self._trail, self._next = [], None
            return self._levels.sync(present, shunned)

    def take(self, name: bytes, ids: Ids, ordinals: _I64) -> None:
        """A pack by its own table, which somebody else wrote."""
        with self._lock:
            if len(ids):
                self._tables.put(name, ids, ordinals)
            dense = self._levels.dense_hooks > 0
            self._levels.add([hooks_of(name, ids, ordinals, dense=dense)])

    def learn(self, packs: Sequence[PackHooks]) -> None:
        """Packs by what an index object says of them, or objects that are only known."""
        with self._lock:
            self._levels.add(packs)

    def untold(self) -> dict[bytes, bool]:
        """What was added since ``told``, and whether it has blocks."""
        return dict(self._untold)

    def told(self) -> None:
        self._untold = {}

    def whole(self, name: bytes) -> Ids | None:
        """All ids of a pack by ordinal, zeroes at holes; ``None`` where it has none, or they
        can't be had."""
        return self._tables.whole(name)

    def flush(self) -> None:
        """Write to the cache directory what only memory holds."""
        with self._lock:
            self._levels.flush()
            self._tables.trim()

    def clear(self) -> None:
        """Forget everything, also in the cache directory but for the tables, which prove
        themselves."""
        with self._lock:
            self._trail, self._next = [], None
            self._levels.clear()

    def has_table(self, name: bytes) -> bool:
        return self._tables.has(name)

    def drop_tables(self, names: Iterable[bytes]) -> None:
        self._tables.drop(names)

    def size(self) -> IndexSize:
        with self._lock:
            return IndexSize(*self._levels.size(), self._tables.size())

    # -- looking up ---------------------------------------------------------------------------
    def _straight(self, ids: Ids) -> Addresses:
        """Of as many ids as go straight on behind the last batch: what is read again in the
        order in which it was stored needs no search."""
        count = 0
        pack, first = self._next or (0, 0)
        if self._next is not None and len(ids):
            row = first % SEGMENT_BLOCKS
            for number in range((row + len(ids) - 1) // SEGMENT_BLOCKS + 1):
                rows = self._tables.segment(self._names[pack], first // SEGMENT_BLOCKS + number)
                if rows is None:
                    break
                rows = rows[row if number == 0 else 0 :]
                wanted = ids[count : count + len(rows)]
                rows = rows[: len(wanted)]
                same = (rows[:, 0] == wanted[:, 0]) & (rows[:, 1] == wanted[:, 1])
                same &= (rows[:, 0] | rows[:, 1]) != 0
                here = first // SEGMENT_BLOCKS + number
                if same.any() and not self._trust.believes(self._names[pack], here):
                    break
                ends = np.flatnonzero(~same)
                count += int(ends[0]) if len(ends) else len(rows)
                if len(ends) or not len(rows):
                    break
        return Addresses(
            np.full(count, pack, dtype=np.int64), np.arange(first, first + count, dtype=np.int64)
        )

    def _search(self, batch: Batch) -> None:
        """By where the last batch ended; by hooks; then, of young packs, by any id."""
        seen: set[Place] = set()
        if self._trail:
            pack, segment = self._trail[0]
            reach = range(segment + 1, segment + 2 + len(batch.keys) // SEGMENT_BLOCKS)
            self._follow(batch, [*self._trail, *((pack, next_) for next_ in reach)], seen)
        unknown = batch.unknown()
        self._follow(batch, self._places(unknown[is_hook(unknown)], dense_only=False), seen)
        unknown = batch.unknown()
        self._follow(batch, self._places(unknown, dense_only=True), seen)

    def _places(self, keys: Keys, *, dense_only: bool) -> list[Place]:
        found = []
        for name, segment in self._levels.probe(keys, dense_only=dense_only):
            found.append((self.pack_number(name), segment))
        return found

    def _follow(self, batch: Batch, places: Sequence[Place], seen: set[Place]) -> None:
        """Match these segments, then their neighbours where a match runs to the edge, as far as
        a batch can reach."""
        for _ in range(2 + len(batch.keys) // SEGMENT_BLOCKS):
            places = [place for place in dict.fromkeys(places) if place not in seen]
            if not places:
                return
            seen.update(places)
            here, segments = self._load(places, batch)
            places = batch.match(here, segments)

    def _load(self, places: Sequence[Place], batch: Batch) -> tuple[list[Place], list[Ids]]:
        names = {self._names[number] for number, _ in places}
        if len(names) > 1:
            self._tables.ensure(names)
        here, segments = [], []
        for number, segment in places:
            rows = self._tables.segment(self._names[number], segment)
            if rows is None:
                self._levels.shun({self._names[number]})  # missing or damaged: not tried again
            elif not self._may_use(self._names[number], segment, batch, rows):
                self._levels.shun({self._names[number]})
            else:
                here.append((number, segment))
                segments.append(rows)
        return here, segments

    def _may_use(self, name: bytes, segment: int, batch: Batch, rows: Ids) -> bool:
        """What has nothing to offer is not looked at, which may cost a request."""
        settled = self._trust.settled(name, segment)
        return settled or not batch.touches(rows) or self._trust.believes(name, segment)

    def _remember(self, addresses: Addresses) -> None:
        """Where the batch ended: the next one most likely goes on there."""
        last = np.flatnonzero(addresses.pack >= 0)[-1:-_TRAIL:-1]
        self._next = None
        if len(last):
            behind = len(addresses.pack) - int(last[0])
            self._next = (int(addresses.pack[last[0]]), int(addresses.ordinal[last[0]]) + behind)
        packs = addresses.pack[last].tolist()
        segments = (addresses.ordinal[last] // SEGMENT_BLOCKS).tolist()
        self._trail = list(dict.fromkeys(zip(packs, segments, strict=True)))
