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
from drvm.chunker.kernel import KERNEL

_I64 = npt.NDArray[np.int64]

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Addresses:
    """``pack``: int64, a number that ``Index.pack_name`` resolves, or ``UNKNOWN``;
    ``ordinal``: int64, valid where ``pack`` is."""

    pack: _I64
    ordinal: _I64


@dataclass(frozen=True, slots=True)
class Found:
    """Where blocks are: ``which`` of ``packs``, or -1, and ``ordinal`` in it, an entry each."""

    packs: tuple[bytes, ...]
    which: _I64
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


def find(index: Index, ids: Ids) -> Found:
    """The addresses of ``ids``, with the names of the packs."""
    found = index.lookup(ids)
    numbers = np.unique(found.pack[found.pack != UNKNOWN])
    which = np.where(found.pack == UNKNOWN, -1, np.searchsorted(numbers, found.pack))
    return Found(tuple(map(index.pack_name, numbers.tolist())), which, found.ordinal)


class SortedIds:
    """Ids with a number each, 24 bytes apiece where a dictionary takes 180: the blocks of packs
    that are not finished yet, which no index knows.

    Sorted runs, each at least twice as long as the next: adding costs little however many there
    are, and there are never many runs to look into.
    """

    def __init__(self) -> None:
        self._runs: list[_SortedRun] = []

    def add(self, ids: Ids, numbers: _I64) -> None:
        run = _SortedRun(ids[:, 0], ids[:, 1], numbers)
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            longer = self._runs.pop()
            run = _SortedRun(
                np.concatenate((longer.keys, run.keys)),
                np.concatenate((longer.seconds, run.seconds)),
                np.concatenate((longer.numbers, run.numbers)),
            )
        self._runs.append(run.take(np.argsort(run.keys, kind="stable")))

    def drop_below(self, number: int) -> None:
        """Forget those with lower numbers."""
        kept = (run.take(np.flatnonzero(run.numbers >= number)) for run in self._runs)
        self._runs = [run for run in kept if len(run.keys)]

    def find(self, ids: Ids) -> _I64:
        """The number of each id, ``UNKNOWN`` for one that was not added. Of two ids that share
        their first word, one pair in 2^64, only the first is found: the other is stored once
        more."""
        numbers = np.full(len(ids), UNKNOWN, dtype=np.int64)
        keys, places = np.ascontiguousarray(ids[:, 0]), np.empty(len(ids), dtype=np.int64)
        for run in self._runs:
            row = run.keys.data
            if KERNEL.probe(row, row.nbytes, len(row), None, keys.data, places.data):
                here = np.flatnonzero(places >= 0)
                here = here[run.seconds[places[here]] == ids[here, 1]]
                numbers[here] = run.numbers[places[here]]
        return numbers


@dataclass(frozen=True, slots=True)
class _SortedRun:
    """Both words of ids, by the first one, and their numbers."""

    keys: npt.NDArray[np.uint64]
    seconds: npt.NDArray[np.uint64]
    numbers: _I64

    def take(self, places: _I64) -> _SortedRun:
        return _SortedRun(self.keys[places], self.seconds[places], self.numbers[places])
