"""The reference for the index: every id of every pack, in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids, zero_ids
from drvm.repository.index import UNKNOWN, Addresses

_I64 = npt.NDArray[np.int64]


class ExactIndex:
    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._tables: dict[int, tuple[Ids, _I64]] = {}
        self._sorted: tuple[Ids, _I64, _I64] | None = None

    def known(self) -> set[bytes]:
        return {self._names[number] for number in self._tables}

    def pack_name(self, number: int) -> bytes:
        return self._names[number]

    def pack_number(self, name: bytes) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def add(self, name: bytes, ids: Ids, ordinals: _I64) -> None:
        self._tables[self.pack_number(name)] = (ids, ordinals)
        self._sorted = None

    def forget(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._tables.pop(self.pack_number(name), None)
        self._sorted = None

    def stored_ids(self, number: int, ordinals: _I64) -> Ids | None:
        ids, there = self._tables.get(number, (zero_ids(0), np.zeros(0, dtype=np.int64)))
        at = np.searchsorted(there, ordinals)
        if not len(there) or not np.array_equal(there[np.minimum(at, len(there) - 1)], ordinals):
            return None
        return ids[at]

    def lookup(self, ids: Ids) -> Addresses:
        table, packs, ordinals = self._sorted or self._sort()
        pack = np.full(len(ids), UNKNOWN, dtype=np.int64)
        ordinal = np.zeros(len(ids), dtype=np.int64)
        at, found = _places(table, ids)
        found &= ids.any(axis=1)
        pack[found] = packs[at[found]]
        ordinal[found] = ordinals[at[found]]
        return Addresses(pack, ordinal)

    def _sort(self) -> tuple[Ids, _I64, _I64]:
        numbers = sorted(self._tables)
        ids = np.concatenate([self._tables[n][0] for n in numbers] or [zero_ids(0)])
        ordinals = np.concatenate(
            [self._tables[n][1] for n in numbers] or [np.zeros(0, dtype=np.int64)]
        )
        packs = np.repeat(
            np.array(numbers, dtype=np.int64), [len(self._tables[n][1]) for n in numbers]
        )
        order = np.argsort(ids[:, 0], kind="stable")
        self._sorted = (ids[order], packs[order], ordinals[order])
        return self._sorted


def _places(table: Ids, ids: Ids) -> tuple[_I64, npt.NDArray[np.bool_]]:
    """For each id its place in ``table``, which is sorted by the first word of its ids, and
    whether it is there. Of two ids that share that word only the first is found."""
    if not len(table):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
    at = np.minimum(np.searchsorted(table[:, 0], ids[:, 0]), len(table) - 1)
    return at, (table[at] == ids).all(axis=1)
