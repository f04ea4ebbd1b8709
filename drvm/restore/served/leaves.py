"""Where the blocks of a disk are, and what they must be: leaf by leaf, as they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BlockHasher, zero_ids
from drvm.chunker.runs import Leaf, boundaries
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap
from drvm.repository.index.tables import IdTables
from drvm.repository.nodes import DIGEST_BYTES
from drvm.restore.served.kept import Kept
from drvm.restore.served.patience import Patience

_RUNS_KEPT = 512
"""32 GiB of a disk: 3 MiB where nothing was changed since the first backup, 150 on an aged one."""
_IDS_KEPT = 64
"""A quarter of a mebibyte each."""

_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks that lie side by side on the disk and in a pack. ``place``: in the leaf."""

    place: int
    pack: bytes
    ordinal: int
    count: int


@dataclass(frozen=True, slots=True)
class Runs:
    """The stored blocks of a leaf, in the disk's order; arrays with an entry per run."""

    packs: tuple[bytes, ...]
    start: _I64
    count: _I64
    pack: _I64
    ordinal: _I64

    @staticmethod
    def of(leaf: Leaf) -> Runs:
        start, count = boundaries(leaf.pack, leaf.ordinal)
        return Runs(leaf.packs, start, count, leaf.pack[start], leaf.ordinal[start])

    def between(self, first: int, stop: int) -> Iterator[Run]:
        """Those in a range of blocks, cut at its ends."""
        low = max(int(np.searchsorted(self.start, first, side="right")) - 1, 0)
        high = int(np.searchsorted(self.start, stop))
        columns = (self.start, self.count, self.pack, self.ordinal)
        for start, count, pack, ordinal in zip(
            *(column[low:high].tolist() for column in columns), strict=True
        ):
            cut = max(first - start, 0)
            count = min(start + count, stop) - start - cut
            if count > 0:
                yield Run(start + cut, self.packs[pack], ordinal + cut, count)

    def stored(self) -> tuple[list[int], list[int]]:
        """(first blocks, ends) of the ranges that are stored, wherever they are."""
        end = self.start + self.count
        apart = np.flatnonzero(self.start[1:] != end[:-1]) + 1
        first = np.concatenate(([0], apart)) if len(end) else apart
        last = np.concatenate((apart, [len(end)])) - 1 if len(end) else apart
        return self.start[first].tolist(), end[last].tolist()


_NOTHING = Runs((), *(np.zeros(0, np.int64),) * 4)


class Leaves:
    """Those of one disk. Safe for several threads, which don't wait for each other's leaves.

    Raises ``DamageFound``, and what the store raises when patience is at its end.
    """

    def __init__(
        self, disk_map: DiskMap, hasher: BlockHasher, tables: IdTables, patience: Patience
    ) -> None:
        self.map = disk_map
        self._hasher = hasher
        self._tables = tables
        self._patience = patience
        self._lock = threading.Lock()
        self._runs: Kept[int, Runs] = Kept(_RUNS_KEPT)
        self._ids: Kept[int, bytes] = Kept(_IDS_KEPT)

    def runs(self, index: int) -> Runs:
        return self._runs.make(index, lambda: self._patience.ask(partial(self._load, index)))

    def ids(self, index: int) -> bytes:
        """Those of all blocks of the leaf, 16 bytes each, as its digest stands for them: taken from
        the packs' own tables, so that a block proves itself without the rest of its leaf."""
        return self._ids.make(index, lambda: self._patience.ask(partial(self._prove, index)))

    def has_ids(self, index: int) -> bool:
        return self._ids.get(index) is not None

    def _load(self, index: int) -> Runs:
        leaf = self._leaf(index)
        return _NOTHING if leaf is None else Runs.of(leaf)

    def _leaf(self, index: int) -> Leaf | None:
        with self._lock:  # a request to the store for each 2 GiB of the disk, at most
            child = self.map.leaf_child(index)
        return None if child is None else self.map.leaf_of(child, index)

    def _prove(self, index: int) -> bytes:
        runs = self.runs(index)
        ids = zero_ids(self.map.leaf_blocks(index))
        self._tables.ensure(runs.packs)
        for number, name in enumerate(runs.packs):
            mine = np.flatnonzero(runs.pack == number)
            count = runs.count[mine]
            within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            found = self._tables.at(name, np.repeat(runs.ordinal[mine], count) + within)
            if found is None:
                raise DamageFound(
                    f"pack {name.hex()} is missing, damaged or lacks blocks that a disk map names"
                )
            ids[np.repeat(runs.start[mine], count) + within] = found
        with self._lock:
            child = self.map.leaf_child(index)
        if child is None or self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != child.digest:
            raise DamageFound(f"leaf {index} of a disk is not what its disk map stands for")
        return ids.tobytes()
