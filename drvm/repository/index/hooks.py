"""Hooks: the blocks by which others are found, in sorted runs of 12 bytes a hook.

A *segment* is 256 consecutive ordinals of a pack. A hook says that a block, known by the first
word of its id (``key``), lies in a segment (``value``: number of the pack in the run's own list
of names << 8 | number of the segment). It promises nothing: what is there is told by the pack's
own id table. Only ids that are 0 mod 16 need be hooks; young runs are *dense* and hold all ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids
from drvm.chunker.kernel import KERNEL

SEGMENT_BLOCKS = 256
SEGMENT_BITS = 8
MAX_SEGMENTS = 1 << SEGMENT_BITS
"""Of a pack that have hooks: enough for all blocks but where many frames are partial."""
NAME_BYTES = 32
HOOK_BYTES = 12
PAGE_HOOKS = 682
"""Hooks of a page, the unit in which a run that is not in memory is read: 8 KiB."""

Keys = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint32]
Names = npt.NDArray[np.bytes_]
"""dtype S32, ascending, each once."""
Mask = npt.NDArray[np.bool_]
_I64 = npt.NDArray[np.int64]

_HOOK_MASK = np.uint64(15)
_MERGE_PAGES = 64
_NAMES_AT_ONCE = 1 << 15
_NO_KEYS: Keys = np.zeros(0, dtype=np.uint64)
_NO_VALUES: Values = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class PackHooks:
    """``segments``: that the blocks with these keys lie in."""

    name: bytes
    keys: Keys
    segments: _I64


class Run(Protocol):
    """An immutable sorted run, but for ``dead``: which of its packs are not to be found.

    ``fence`` are the first keys of its pages. ``file``: the name of its file, 16 random bytes,
    empty in memory. Runs of higher ``sequence`` are younger. Reading raises ``ValueError`` where
    a file is damaged.
    """

    count: int
    dense: bool
    sequence: int
    file: bytes
    fence: Keys
    dead: Mask

    def names(self, first: int, last: int) -> Names:
        """Of packs ``first`` to ``last`` - 1."""
        ...

    def name(self, number: int) -> bytes: ...

    def pages(self, first: int, last: int) -> tuple[Keys, Values]:
        """All hooks of pages ``first`` to ``last`` - 1."""
        ...

    def probe(self, wanted: Keys) -> tuple[_I64, Values]:
        """(place in ``wanted``, value) of those that are here."""
        ...


class MemoryRun:
    """A run all of which is in memory."""

    def __init__(
        self, names: Names, keys: Keys, values: Values, *, dense: bool, sequence: int = 0
    ) -> None:
        self._names = names
        self._keys = keys
        self._values = values
        self.count = len(keys)
        self.dense = dense
        self.sequence = sequence
        self.file = b""
        self.fence = keys[::PAGE_HOOKS]
        self.dead = np.zeros(len(names), dtype=np.bool_)

    def names(self, first: int, last: int) -> Names:
        return self._names[first:last]

    def name(self, number: int) -> bytes:
        return name_at(self._names, number)

    def pages(self, first: int, last: int) -> tuple[Keys, Values]:
        here = slice(first * PAGE_HOOKS, last * PAGE_HOOKS)
        return self._keys[here], self._values[here]

    def probe(self, wanted: Keys) -> tuple[_I64, Values]:
        return find(self._keys, self._values, wanted)


def find(keys: Keys, values: Values, wanted: Keys) -> tuple[_I64, Values]:
    """(place in ``wanted``, value) of those that are in ``keys``, which ascend."""
    at = np.empty(len(wanted), dtype=np.int64)
    if not KERNEL.probe(keys.data, keys.nbytes, len(keys), None, wanted.data, at.data):
        return np.zeros(0, dtype=np.int64), _NO_VALUES
    hit = np.flatnonzero(at >= 0)
    return hit, values[at[hit]]


def weight(run: Run) -> int:
    """What a merge of it costs: hooks, and names."""
    return run.count + len(run.dead)


def living(run: Run) -> Names:
    return run.names(0, len(run.dead))[~run.dead]


def place_in(run: Run, name: bytes) -> int | None:
    """The number of a pack, by a few single reads."""
    low, high = 0, len(run.dead)
    while low < high:
        middle = (low + high) // 2
        found = run.name(middle)
        if found == name:
            return middle
        low, high = (middle + 1, high) if found < name else (low, middle)
    return None


def judge(run: Run, present: Names, seen: Mask) -> None:
    """Every pack that is not ``present`` is dead, all others live. What lives is marked in
    ``seen``, which goes with ``present``, when all of the run was read: a damaged run goes, and
    with it what it knew."""
    living = []
    for first in range(0, len(run.dead), _NAMES_AT_ONCE):
        names = run.names(first, min(first + _NAMES_AT_ONCE, len(run.dead)))
        here = run.dead[first : first + len(names)]
        here[:] = True
        if len(present):
            at = np.minimum(np.searchsorted(present, names), len(present) - 1)
            np.not_equal(present[at], names, out=here)
            living.append(at[~here])
    for at in living:
        seen[at] = True


def name_at(names: Names, number: int) -> bytes:
    name: bytes = names[number]
    return name.ljust(NAME_BYTES, b"\0")  # numpy drops zeroes at the end


def sorted_names(raw: bytes | bytearray) -> Names:
    """Of concatenated names, in any order."""
    return np.unique(np.frombuffer(bytes(raw), dtype="S32"))


def is_hook(keys: Keys) -> Mask:
    mask: Mask = (keys & _HOOK_MASK) == 0
    return mask


def hooks_of(name: bytes, ids: Ids, ordinals: _I64, *, dense: bool) -> PackHooks:
    """The hooks of a pack, of which zero ids, being holes, are none."""
    wanted: Mask = ids.any(axis=1) & (ordinals < MAX_SEGMENTS * SEGMENT_BLOCKS)
    if not dense:
        wanted &= is_hook(ids[:, 0])
    return PackHooks(name, ids[wanted, 0], ordinals[wanted] // SEGMENT_BLOCKS)


def make_run(packs: Sequence[PackHooks], *, dense: bool) -> MemoryRun:
    """Each pack once."""
    names = sorted_names(b"".join(pack.name for pack in packs))
    parts: list[tuple[Keys, Values]] = []
    for pack in packs:
        number = int(np.searchsorted(names, np.bytes_(pack.name)))
        values = (number << SEGMENT_BITS | pack.segments).astype(np.uint32)
        parts.append((pack.keys, values))
    return MemoryRun(names, *_sorted(parts), dense=dense)


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge to be done: ``names`` of the living packs; ``parts`` in ascending order, each
    small. Of hooks with one key the youngest stays. ``hooks``: about how many there are."""

    names: Names
    dense: bool
    hooks: int
    parts: Iterator[tuple[Keys, Values]]

    def in_memory(self) -> MemoryRun:
        parts = [*self.parts, (_NO_KEYS, _NO_VALUES)]
        keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return MemoryRun(self.names, keys, values, dense=self.dense)


def merge(runs: Sequence[Run], *, dense_hooks: int) -> Merged:
    """``runs``: youngest first. What would be dense with more than ``dense_hooks`` is thinned."""
    dense = all(run.dense for run in runs) and sum(run.count for run in runs) <= dense_hooks
    names = sorted_names(b"".join(living(run).tobytes() for run in runs))
    hooks = sum(run.count // (16 if run.dense and not dense else 1) for run in runs)
    return Merged(names, dense, hooks, _merged(runs, names, thin=not dense))


def _merged(runs: Sequence[Run], names: Names, *, thin: bool) -> Iterator[tuple[Keys, Values]]:
    renumbered = []
    for run in runs:
        table = np.full(len(run.dead) + 1, -1, dtype=np.int64)  # the last: for what can't be
        table[:-1][~run.dead] = np.searchsorted(names, living(run))
        renumbered.append(table)
    # between two neighbouring bounds no run has more than so many pages, however its keys lie
    bounds = np.unique(np.concatenate([run.fence[::_MERGE_PAGES] for run in runs]))
    for number in range(len(bounds)):
        high = bounds[number + 1] if number + 1 < len(bounds) else None
        parts = []
        for run, table in zip(runs, renumbered, strict=True):
            keys, values = _between(run, bounds[number], high)
            pack = table[np.minimum(values >> SEGMENT_BITS, len(table) - 1)]
            kept = pack >= 0
            if thin:
                kept &= is_hook(keys)
            segment = values[kept] & (MAX_SEGMENTS - 1)
            parts.append((keys[kept], (pack[kept] << SEGMENT_BITS | segment).astype(np.uint32)))
        yield _sorted(parts)


def _between(run: Run, low: np.uint64, high: np.uint64 | None) -> tuple[Keys, Values]:
    """The hooks with ``low`` <= key < ``high``."""
    first = max(0, int(np.searchsorted(run.fence, low, side="right")) - 1)
    last = len(run.fence) if high is None else int(np.searchsorted(run.fence, high))
    keys, values = run.pages(first, last)
    start = int(np.searchsorted(keys, low))
    stop = len(keys) if high is None else int(np.searchsorted(keys, high))
    return keys[start:stop], values[start:stop]


def _sorted(parts: Sequence[tuple[Keys, Values]]) -> tuple[Keys, Values]:
    """All in one, ascending; of equal keys the first one given."""
    keys = np.concatenate([keys for keys, _ in parts] or [_NO_KEYS])
    values = np.concatenate([values for _, values in parts] or [_NO_VALUES])
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return keys[first], values[first]
