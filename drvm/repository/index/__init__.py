"""The index: which block is stored where.

``SparseIndex`` in ``sparse.py`` is the one there is; docs/adr/023-sparse-index.md says why it is
as it is. What is not found is stored once more, so "unknown" is always a right answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids

_I64 = npt.NDArray[np.int64]

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Addresses:
    """``pack``: int64, a number that ``Index.pack_name`` resolves, or ``UNKNOWN``;
    ``ordinal``: int64, valid where ``pack`` is."""

    pack: _I64
    ordinal: _I64


class Index(Protocol):
    """Safe for several threads. Numbers of packs hold as long as the object lives."""

    def lookup(self, ids: Ids) -> Addresses:
        """Addresses for a batch of ids, best some 1024 that lay side by side: blocks are found
        by their neighbours. Whatever is found is right. Zero blocks are unknown."""
        ...

    def pack_name(self, number: int) -> bytes: ...

    def pack_number(self, name: bytes) -> int:
        """The number of a pack, known to the index or not."""
        ...

    def stored_ids(self, number: int, ordinals: _I64) -> Ids | None:
        """The ids at these ordinals of a pack; ``None`` unless the index knows them all."""
        ...

    def add(self, name: bytes, ids: Ids, ordinals: _I64) -> None:
        """A finished pack, uploaded or about to be. ``ordinals`` ascend. A pack without blocks
        is only known."""
        ...

    def forget(self, names: Iterable[bytes]) -> None:
        """No look-up finds these packs again, until a listing of the store shows them."""
        ...


class SortedIds:
    """Ids with a number each, 24 bytes apiece where a dictionary takes 180: the blocks of packs
    that are not finished yet, which no index knows.

    Sorted runs, each at least twice as long as the next: adding costs little however many there
    are, and there are never many runs to look into.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Ids, _I64]] = []

    def add(self, ids: Ids, numbers: _I64) -> None:
        while self._runs and len(self._runs[-1][1]) < 2 * len(numbers):
            longer_ids, longer_numbers = self._runs.pop()
            ids = np.concatenate((longer_ids, ids))
            numbers = np.concatenate((longer_numbers, numbers))
        order = np.argsort(ids[:, 0], kind="stable")
        self._runs.append((ids[order], numbers[order]))

    def drop_below(self, number: int) -> None:
        """Forget those with lower numbers."""
        kept = [(ids[numbers >= number], numbers[numbers >= number]) for ids, numbers in self._runs]
        self._runs = [(ids, numbers) for ids, numbers in kept if len(numbers)]

    def find(self, ids: Ids) -> _I64:
        """The number of each id, ``UNKNOWN`` for one that was not added."""
        numbers = np.full(len(ids), UNKNOWN, dtype=np.int64)
        for table, values in self._runs:
            at, found = _places(table, ids)
            numbers[found] = values[at[found]]
        return numbers


def _places(table: Ids, ids: Ids) -> tuple[_I64, npt.NDArray[np.bool_]]:
    """For each id its place in ``table``, which is sorted by the first word of its ids, and
    whether it is there. Of two ids that share that word, one in 2^64, only the first is found:
    the other is stored once more."""
    if not len(table):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
    at = np.minimum(np.searchsorted(table[:, 0], ids[:, 0]), len(table) - 1)
    return at, (table[at] == ids).all(axis=1)
