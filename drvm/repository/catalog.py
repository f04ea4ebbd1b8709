"""Keeping the index and the store in step: what packs there are, learnt from other hosts' index
objects or the packs themselves, and told to other hosts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids, zero_ids
from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError
from drvm.core.progress import NoProgress, Progress
from drvm.core.threads import mapped
from drvm.repository.crypto import Sealer
from drvm.repository.index import objects
from drvm.repository.index.hooks import NAME_BYTES, Names, PackHooks, hooks_of, sorted_names
from drvm.repository.index.sparse import IndexSize, SparseIndex
from drvm.repository.layout import INDEX, PACKS, index_name, index_object, pack_name
from drvm.repository.listings import condemned_packs, present_packs
from drvm.repository.packs import PackReader
from drvm.repository.points import create_once
from drvm.store.base import MAX_OBJECT_BYTES, Store

_TABLES_WAITING = 64
_NO_ORDINALS = np.zeros(0, dtype=np.int64)
_Table = tuple[Ids, npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class RebuildPlan:
    """``cached`` of the packs have their ids in the local cache; of all others the ends are
    read from the store."""

    packs: int
    cached: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """``damaged``: packs whose tables are not what their names stand for."""

    size: IndexSize
    damaged: frozenset[bytes]


class Catalog:
    """One caller at a time. ``shunned``: packs that must not be relied on, by the last
    ``refresh``: condemned, banned, or with damaged tables, which are ``damaged``."""

    def __init__(self, store: Store, sealer: Sealer, packs: PackReader, index: SparseIndex) -> None:
        self._store = store
        self._sealer = sealer
        self._packs = packs
        self._index = index
        self._left_out: frozenset[bytes] = frozenset()
        self.damaged: frozenset[bytes] = frozenset()

    @property
    def shunned(self) -> frozenset[bytes]:
        return self._left_out | self.damaged

    def refresh(
        self,
        banned: frozenset[bytes],
        *,
        by_objects: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Learn of all packs that are there, and of no others. What ends half-way is gone on
        with by the next call. Tombstones are listed first, as a writer must.

        Not ``by_objects``: what index objects say now is not believed later either, so that a
        pack whose tables turn out to be damaged stays shunned."""
        self._left_out = condemned_packs(self._store) | banned
        self.damaged = frozenset()
        sizes = self._objects()
        unknown = set(self._index.sync(self._present(sizes), self._left_out))
        new_objects = sorted(unknown & sizes.keys())
        unknown -= sizes.keys()
        if not by_objects:
            self._index.learn([_only_known(name) for name in new_objects])
        elif unknown:
            self._learn(new_objects, sizes, unknown)
        self._read(sorted(unknown), progress or NoProgress())
        self._index.flush()

    def share(self) -> bool:
        """Tell other hosts of the packs that were added here since the last time, if there are
        any. They must all be stored. A crash leaves some of the objects: whatever they tell of
        is there, and of the rest the packs themselves tell."""
        untold = self._index.untold()
        for batch in objects.batches(self._hooks(untold)):
            name = secrets.token_bytes(NAME_BYTES)
            object_name = index_object(name)
            sealed = self._sealer.seal_object(b"index", object_name, objects.encode(batch))
            create_once(self._store, object_name, sealed)
            self._index.learn([_only_known(name)])
        self._index.told()
        return bool(untold)

    def forget(self, names: frozenset[bytes]) -> None:
        """Packs that are about to be deleted: no block is found in them any more."""
        self._index.forget(names)
        self._index.drop_tables(names)

    def index_objects(self) -> list[bytes]:
        return sorted(self._objects())

    def told_by(self, name: bytes) -> frozenset[bytes] | None:
        """The packs that an index object tells of; ``None`` where nobody can tell."""
        told = frozenset(pack.name for pack in self._object(name))
        return told or None

    def plan_rebuild(self) -> RebuildPlan:
        names = present_packs(self._store)
        return RebuildPlan(len(names), sum(map(self._index.has_table, names)))

    def rebuild(self, progress: Progress) -> Rebuilt:
        """From the packs alone. What was there before is gone at once: a crash leaves an index
        that the next ``refresh`` completes."""
        self._index.clear()
        self.refresh(frozenset(), by_objects=False, progress=progress)
        return Rebuilt(self._index.size(), self.damaged)

    def size(self) -> IndexSize:
        """As of the last ``refresh``; of files, as they are."""
        return self._index.size()

    # -- inside -------------------------------------------------------------------------------
    def _objects(self) -> dict[bytes, int]:
        """Name -> bytes of all index objects."""
        named = ((index_name(info.name), info.size_bytes) for info in self._store.list(INDEX))
        return {name: size for name, size in named if name is not None}

    def _present(self, others: Iterable[bytes]) -> Names:
        """Names of packs and index objects, 32 bytes each however many there are."""
        raw = bytearray().join(others)
        for info in self._store.list(PACKS):
            raw += pack_name(info.name) or b""
        return sorted_names(raw)

    def _learn(self, names: Sequence[bytes], sizes: dict[bytes, int], unknown: set[bytes]) -> None:
        """From index objects, as far as they tell of packs that are there. One that can't be
        read, or lies, is as good as absent."""
        for name in names:
            packs = self._object(name) if sizes[name] <= MAX_OBJECT_BYTES else []
            fresh = [pack for pack in packs if pack.name in unknown]
            unknown.difference_update(pack.name for pack in fresh)
            self._index.learn([*fresh, _only_known(name)])

    def _object(self, name: bytes) -> list[PackHooks]:
        object_name = index_object(name)
        try:
            sealed = self._store.get(object_name)
            return objects.decode(self._sealer.open_object(b"index", object_name, sealed))
        except (ObjectDamaged, ObjectMissing, RepositoryError, ValueError):
            return []

    def _read(self, names: Sequence[bytes], progress: Progress) -> None:
        """Learn of packs by their own tables, which are read a few at a time."""
        if not names:
            return
        progress.stage(f"reading the id tables of {len(names)} packs")
        tables = mapped(self._table, names, waiting=_TABLES_WAITING)
        for name, table in zip(names, tables, strict=True):
            if isinstance(table, RepositoryError):
                self.damaged |= {name}
            else:
                self._index.take(name, *table)
                progress.advance(table[0].nbytes)

    def _table(self, name: bytes) -> _Table | RepositoryError:
        """From the local cache, or the pack; no ids for a metadata pack."""
        rows = self._index.whole(name) if self._index.has_table(name) else None
        if rows is not None:
            ordinals = np.flatnonzero(rows.any(axis=1))
            return rows[ordinals], ordinals
        try:
            return self._packs.ids(name) or (zero_ids(0), _NO_ORDINALS)
        except RepositoryError as error:
            return error

    def _hooks(self, names: dict[bytes, bool]) -> Iterator[PackHooks]:
        for name, has_blocks in names.items():
            if not has_blocks:
                yield _only_known(name)
                continue
            rows = self._index.whole(name)
            if rows is not None:  # others read the table of a pack that nobody tells of
                small = int(rows.any(axis=1).sum()) <= objects.SMALL_PACK_BLOCKS
                yield hooks_of(name, rows, np.arange(len(rows)), dense=small)


def _only_known(name: bytes) -> PackHooks:
    return PackHooks(name, np.zeros(0, dtype=np.uint64), _NO_ORDINALS)
