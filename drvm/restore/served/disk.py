"""One disk of a point, read at random by several threads at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, LEAF_BLOCKS, BlockHasher
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound
from drvm.core.extents import Extent, ExtentKind
from drvm.core.units import MIB
from drvm.repository.diskmap import DiskMap
from drvm.repository.index.tables import IdTables
from drvm.restore.served.ahead import Ahead
from drvm.restore.served.frames import Frames, Opened
from drvm.restore.served.hints import UNIT_BYTES, Recorder
from drvm.restore.served.leaves import Leaves, Run
from drvm.restore.served.patience import Patience

_MOST_EXTENTS = 4096
_MOST_LEAVES = 256
"""16 GiB of a disk: the work of one question after its extents is bounded, and a client asks
again for what the answer left out."""
_PIECE_BLOCKS = 1024
"""4 MiB, and the frames they are in, are in memory for a request at a time."""
_ZEROES = memoryview(bytes(MIB))


T = TypeVar("T")
Renew = Callable[[], DiskMap | None]
"""Looks whether the point was written anew since: its disk map then, else ``None``. Raises
nothing."""


class ServedDisk:
    """Every block is compared with its id before a byte of it is given away, and the ids with what
    the disk map stands for. For any number of threads.

    Raises ``DamageFound``, and what the store raises when patience is at its end.
    """

    def __init__(
        self,
        disk_map: DiskMap,
        frames: Frames,
        hasher: BlockHasher,
        tables: IdTables,
        patience: Patience,
        recorder: Recorder | None = None,
        renew: Renew = lambda: None,
    ) -> None:
        self.size_bytes = disk_map.size_bytes
        self._of_map = partial(Leaves, hasher=hasher, tables=tables, patience=patience)
        self._leaves = self._of_map(disk_map)
        self._renew = renew
        self._renewing = threading.Lock()
        self._frames = frames
        self._ahead = Ahead(disk_map.size_bytes)
        self._recorder = recorder

    def read_into(self, offset: int, target: memoryview) -> None:
        """Raises ``ValueError`` for a range that the disk does not have."""
        self._check(offset, len(target))
        if self._recorder is not None:
            self._recorder.seen(offset, len(target))
        ahead = self._ahead.seen(offset, len(target))
        if ahead is not None:
            self.bring(*ahead, opened=True)
        self._as_it_is(lambda leaves: self._read(leaves, offset, target))

    def bring(self, offset: int, length: int, *, opened: bool = False) -> None:
        """Begin to fetch a range that will be wanted soon, and to open it, too, if ``opened``.
        Nothing is promised, and nothing of the store's is raised."""
        self._check(offset, length)
        for leaf, first, stop in _pieces(offset, length, LEAF_BLOCKS):
            self._frames.soon(partial(self._bring, leaf, first, stop, opened))

    def prepare(self, units: Iterable[int]) -> None:
        """Fetch what a hint names, pack by pack, in the background. Raises nothing."""
        self._frames.soon(partial(self._prepare, list(units)))

    def extents(self, offset: int, length: int) -> list[Extent]:
        """DATA and ZERO ranges from ``offset`` on, in whole blocks but for the ends; neighbours
        differ. They may stop before ``length``, but say something of its beginning."""
        self._check(offset, length)

        def told(leaves: Leaves) -> list[Extent]:
            ranges = _joined(_states(leaves, offset, offset + length))
            return [
                Extent(start, end - start, ExtentKind.DATA if is_data else ExtentKind.ZERO)
                for start, end, is_data in itertools.islice(ranges, _MOST_EXTENTS)
            ]

        return self._as_it_is(told)

    # -- inside -------------------------------------------------------------------------------
    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} bytes at {offset} of {self.size_bytes}")

    def _bring(self, leaf: int, first: int, stop: int, opened: bool) -> None:
        runs = list(self._leaves.runs(leaf).between(first, stop))
        for pack, numbers in _frames_of(runs).items():
            self._frames.bring(pack, numbers, opened=opened)
        if opened and runs:
            self._leaves.ids(leaf)

    def _prepare(self, units: list[int]) -> None:
        runs: list[Run] = []
        leaves = []
        for unit in units:
            offset = unit * UNIT_BYTES
            length = min(UNIT_BYTES, self.size_bytes - offset)
            for leaf, first, stop in _pieces(offset, length, LEAF_BLOCKS):
                runs += self._leaves.runs(leaf).between(first, stop)
                leaves.append(leaf)
        self._frames.prepare(_frames_of(runs))
        for leaf in dict.fromkeys(leaves):
            self._leaves.ids(leaf)

    def _proving(self, leaves: Leaves, leaf: int, runs: list[Run]) -> None:
        """Ids that are not at hand are fetched while the frames are."""
        if runs and not leaves.has_ids(leaf):
            self._frames.soon(partial(leaves.ids, leaf))

    def _as_it_is(self, task: Callable[[Leaves], T]) -> T:
        """Do it, and once more where damage means that the point was written anew meanwhile."""
        leaves = self._leaves
        try:
            return task(leaves)
        except DamageFound:
            newer = self._renewed(leaves)
            if newer is None:
                raise
            return task(newer)

    def _renewed(self, leaves: Leaves) -> Leaves | None:
        """The disk as the point has it now, where it was written anew since and its old packs may
        be gone; ``None`` where it is as it was."""
        with self._renewing:
            if self._leaves is leaves:
                newer = self._renew()
                if newer is None or newer.size_bytes != self.size_bytes:
                    return None
                self._leaves = self._of_map(newer)
            return self._leaves

    def _read(self, leaves: Leaves, offset: int, target: memoryview) -> None:
        for leaf, first, stop in _pieces(offset, len(target), _PIECE_BLOCKS):
            base = leaf * LEAF_BLOCKS * BLOCK_BYTES - offset
            done = base + first * BLOCK_BYTES
            runs = list(leaves.runs(leaf).between(first, stop))
            self._proving(leaves, leaf, runs)
            frames = self._frames.get(_frames_of(runs))
            for run in runs:
                start = base + run.place * BLOCK_BYTES
                _zero(target, done, start)
                self._copy(leaves.ids(leaf), run, frames, target, start)
                done = start + run.count * BLOCK_BYTES
            _zero(target, done, base + stop * BLOCK_BYTES)

    def _copy(
        self,
        ids: bytes,
        run: Run,
        frames: dict[tuple[bytes, int], Opened],
        target: memoryview,
        at: int,
    ) -> None:
        """The blocks of a run to ``at`` in ``target``, which may begin in the first of them and end
        in the last."""
        low, stop = run.ordinal, run.ordinal + run.count
        while low < stop:
            number, slot = divmod(low, FRAME_BLOCKS)
            high = min(stop, (number + 1) * FRAME_BLOCKS)
            opened = frames[run.pack, number]
            place = (run.place + low - run.ordinal) * ID_BYTES
            _compare(run.pack, number, opened, slot, ids[place : place + (high - low) * ID_BYTES])
            start = at + (low - run.ordinal) * BLOCK_BYTES
            cut, end = max(0, -start), min(start + (high - low) * BLOCK_BYTES, len(target))
            source = slot * BLOCK_BYTES - start
            target[start + cut : end] = opened.plain[source + start + cut : source + end]
            low = high


def _states(leaves: Leaves, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is stored), without gaps, of at most ``_MOST_LEAVES``."""
    ranges = itertools.islice(_pieces(offset, end - offset, LEAF_BLOCKS), _MOST_LEAVES)
    for leaf, first, stop in ranges:
        base = leaf * LEAF_BLOCKS
        at = max(offset, (base + first) * BLOCK_BYTES)
        for low, high in zip(*leaves.runs(leaf).stored(), strict=True):
            start = min(max((base + low) * BLOCK_BYTES, at), end)
            finish = min(max((base + high) * BLOCK_BYTES, at), end)
            if at < start:
                yield at, start, False
            if start < finish:
                yield start, finish, True
            at = finish
        if at < min(end, (base + stop) * BLOCK_BYTES):
            yield at, min(end, (base + stop) * BLOCK_BYTES), False


def _pieces(offset: int, length: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(leaf, first block in it, end) of the blocks that a range touches, at most so many each."""
    at, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
    while at < end and length > 0:
        leaf, first = divmod(at, LEAF_BLOCKS)
        stop = min(first + end - at, first + most, LEAF_BLOCKS)
        yield leaf, first, stop
        at += stop - first


def _frames_of(runs: Iterable[Run]) -> dict[bytes, list[int]]:
    """By pack, the frames that hold these blocks, ascending."""
    found: dict[bytes, set[int]] = {}
    for run in runs:
        last = (run.ordinal + run.count - 1) // FRAME_BLOCKS
        found.setdefault(run.pack, set()).update(range(run.ordinal // FRAME_BLOCKS, last + 1))
    return {pack: sorted(numbers) for pack, numbers in found.items()}


def _compare(pack: bytes, number: int, opened: Opened, slot: int, ids: bytes) -> None:
    there = opened.ids[slot * ID_BYTES :][: len(ids)]
    if len(there) < len(ids):
        raise DamageFound(
            f"a disk map names blocks beyond the end of frame {number} of pack {pack.hex()}"
        )
    if there != ids:
        raise DamageFound(f"pack {pack.hex()}, frame {number} holds other blocks")


def _zero(target: memoryview, start: int, end: int) -> None:
    """What lies of it in ``target``."""
    start, end = max(start, 0), min(end, len(target))
    for at in range(start, end, len(_ZEROES)):
        size = min(len(_ZEROES), end - at)
        target[at : at + size] = _ZEROES[:size]


def _joined(states: Iterator[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    held: tuple[int, int, bool] | None = None
    for start, end, is_data in states:
        if held is not None and held[2] == is_data:
            held = held[0], end, is_data
            continue
        if held is not None:
            yield held
        held = start, end, is_data
    if held is not None:
        yield held
