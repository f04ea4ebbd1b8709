"""A batch of ids that is looked up: matched against segments until nothing new is found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids
from drvm.repository.index import UNKNOWN, Addresses
from drvm.repository.index.hooks import SEGMENT_BLOCKS, Keys, Mask

_I64 = npt.NDArray[np.int64]
_FILTER_BITS = 16
_FILTER_MASK = np.uint64((1 << _FILTER_BITS) - 1)

Place = tuple[int, int]
"""A segment: number of the pack, number of the segment in it."""


class Batch:
    """The different ids of a batch, sorted by their first word, which is their key. Of two that
    share it, one pair in 2^64, only one is looked for."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._order = np.argsort(ids[:, 0])
        first = np.ones(len(ids), dtype=np.bool_)
        keys = ids[self._order, 0]
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        self._group = np.cumsum(first) - 1
        self._unique = ids[self._order[first]]
        self.keys: Keys = np.ascontiguousarray(self._unique[:, 0])
        self._second = np.ascontiguousarray(self._unique[:, 1])
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        self._filter[self.keys & _FILTER_MASK] = True
        self._pack = np.full(len(self.keys), UNKNOWN, dtype=np.int64)
        self._ordinal = np.zeros(len(self.keys), dtype=np.int64)
        self._zero: Mask = (self.keys | self._second) == 0

    def unknown(self) -> Keys:
        """The keys that were not found yet."""
        keys: Keys = self.keys[(self._pack == UNKNOWN) & ~self._zero]
        return keys

    def touches(self, rows: Ids) -> bool:
        """Whether any of these ids may be one of the batch's."""
        near = rows[self._filter[rows[:, 0] & _FILTER_MASK], 0]
        return bool(np.isin(near, self.keys).any())

    def match(self, places: Sequence[Place], segments: Sequence[Ids]) -> list[Place]:
        """Take addresses from these segments, of which those that match most go first. Returns
        the neighbours of those that match up to an edge."""
        lengths = [len(rows) for rows in segments]
        rows = np.concatenate(segments) if segments else self._ids[:0]
        candidates = np.flatnonzero(self._filter[rows[:, 0] & _FILTER_MASK])
        if not len(candidates):
            return []
        found = rows[candidates]
        at = np.minimum(np.searchsorted(self.keys, found[:, 0]), len(self.keys) - 1)
        same = (self.keys[at] == found[:, 0]) & (self._second[at] == found[:, 1])
        same &= ~self._zero[at]
        candidates, at = candidates[same], at[same]
        start = np.cumsum([0, *lengths])
        which = np.searchsorted(start, candidates, side="right") - 1
        row = candidates - start[which]
        self._take(places, which, row, at)
        return list(_neighbours(places, lengths, which, row))

    def result(self) -> Addresses:
        pack = np.full(len(self._ids), UNKNOWN, dtype=np.int64)
        ordinal = np.zeros(len(self._ids), dtype=np.int64)
        pack[self._order] = self._pack[self._group]
        ordinal[self._order] = self._ordinal[self._group]
        if len(self.keys) < len(self._ids):
            twins = (self._ids[self._order] != self._unique[self._group]).any(axis=1)
            pack[self._order[twins]] = UNKNOWN
        return Addresses(pack, ordinal)

    def _take(self, places: Sequence[Place], which: _I64, row: _I64, at: _I64) -> None:
        free = np.flatnonzero(self._pack[at] == UNKNOWN)
        if len(places) > 1:
            matches = np.bincount(which, minlength=len(places))
            free = free[np.argsort(matches[which[free]], kind="stable")]  # the last written stays
        pack, segment = np.array(places, dtype=np.int64).reshape(-1, 2).T
        at, which, row = at[free], which[free], row[free]
        self._pack[at] = pack[which]
        self._ordinal[at] = segment[which] * SEGMENT_BLOCKS + row


def _neighbours(
    places: Sequence[Place], lengths: Sequence[int], which: _I64, row: _I64
) -> Iterable[Place]:
    for number in np.unique(which[row == 0]).tolist():
        pack, segment = places[number]
        if segment > 0:
            yield pack, segment - 1
    last = np.array(lengths, dtype=np.int64) - 1
    for number in np.unique(which[row == last[which]]).tolist():
        pack, segment = places[number]
        if lengths[number] == SEGMENT_BLOCKS:
            yield pack, segment + 1
