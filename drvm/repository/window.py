"""A window of a disk map in the order of the packs: what a restore fetches, and in which order.

A block of a window is one number, pack | frame | place on the disk | slot, so that a single sort
puts all of them in the order in which their frames lie in the packs, and those of a frame in the
order of the disk: eight bytes a block, whatever the disk's age. docs/adr/025-restore-order.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap
from drvm.repository.layout import PACK_MAX_BLOCKS

WINDOW_LEAVES = 64
"""4 GiB of a disk at a time: bounds memory, whatever the disk's size."""

_SLOT_BITS = (FRAME_BLOCKS - 1).bit_length()
_PLACE_BITS = (WINDOW_LEAVES * LEAF_BLOCKS - 1).bit_length()
_FRAME_BITS = (PACK_MAX_BLOCKS - 1).bit_length()
_PACK_BITS = _PLACE_BITS  # no more packs than blocks
assert _PACK_BITS + _FRAME_BITS + _PLACE_BITS + _SLOT_BITS < 64

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackBlocks:
    """What is wanted of one pack, an entry per block: ascending frames, in each the places
    ascend; ``place`` is counted in blocks from the start of the window. ``again``: a later window
    wants the frame too."""

    name: bytes
    frame: I64
    place: I64
    slot: I64
    again: Flags

    def part(self, at: slice) -> PackBlocks:
        return PackBlocks(self.name, self.frame[at], self.place[at], self.slot[at], self.again[at])

    def of_frames(self, numbers: I64) -> PackBlocks:
        """Of frames that are neighbours here."""
        start = np.searchsorted(self.frame, numbers[0])
        return self.part(slice(start, np.searchsorted(self.frame, numbers[-1], side="right")))


@dataclass(frozen=True, slots=True)
class Window:
    """Leaves side by side. ``first_block``: where they begin on the disk, in blocks; ``blocks``:
    how many they have; ``digests``: of each leaf that is not all zeroes, by its index.
    ``mapped_blocks``: how many blocks such leaves have."""

    first_block: int
    blocks: int
    mapped_blocks: int
    digests: dict[int, bytes]
    _packs: tuple[bytes, ...]
    _keys: I64
    _again: Flags

    @property
    def stored_blocks(self) -> int:
        return len(self._keys)

    def places(self) -> Flags:
        """Which of its blocks are stored; a new array."""
        flags = np.zeros(self.blocks, dtype=np.bool_)
        flags[_places(self._keys)] = True
        return flags

    def only(self, wanted: Flags) -> Window:
        """The same leaves, of whose stored blocks those that are not ``wanted`` are left out."""
        mine = wanted[_places(self._keys)]
        return replace(self, _keys=self._keys[mine], _again=self._again[mine])

    def by_pack(self) -> Iterator[PackBlocks]:
        """Every stored block once, pack by pack."""
        to_frame = _PLACE_BITS + _SLOT_BITS
        to_pack = to_frame + _FRAME_BITS
        start = 0
        while start < len(self._keys):
            number = int(self._keys[start]) >> to_pack
            stop = int(np.searchsorted(self._keys, (number + 1) << to_pack))
            own = self._keys[start:stop]
            frame = own >> to_frame & _mask(_FRAME_BITS)
            slot, again = own & _mask(_SLOT_BITS), self._again[start:stop]
            yield PackBlocks(self._packs[number], frame, _places(own), slot, again)
            start = stop

    def by_leaf(self) -> Iterator[Window]:
        """A window of each leaf, which knows what those behind it want again. Leaves that the map
        does not have are left out."""
        leaf = (_places(self._keys) // LEAF_BLOCKS).astype(np.uint8)
        again = self._wanted_behind(leaf)
        for index, digest in self.digests.items():
            first = index * LEAF_BLOCKS - self.first_block
            blocks = min(LEAF_BLOCKS, self.blocks - first)
            mine = leaf == first // LEAF_BLOCKS
            yield Window(
                self.first_block + first,
                blocks,
                blocks,
                {index: digest},
                self._packs,
                self._keys[mine] - (first << _SLOT_BITS),
                again[mine],
            )

    def _wanted_behind(self, leaf: npt.NDArray[np.uint8]) -> Flags:
        """Of each block: whether a leaf behind its own wants its frame too. The blocks of a frame
        ascend, so its last one tells."""
        frame = self._keys >> (_PLACE_BITS + _SLOT_BITS)
        last = np.searchsorted(frame, frame, side="right") - 1
        wanted: Flags = leaf[last] > leaf
        return wanted

    def stored(self) -> Iterator[tuple[int, int]]:
        """(place, number of blocks) of each range that does not read as zeroes, in the disk's
        order."""
        return self._ranges(stored=True)

    def zeroes(self) -> Iterator[tuple[int, int]]:
        """(place, number of blocks) of each range that reads as zeroes, in the disk's order."""
        return self._ranges(stored=False)

    def _ranges(self, *, stored: bool) -> Iterator[tuple[int, int]]:
        wanted = np.full(self.blocks + 2, not stored, dtype=np.bool_)
        wanted[_places(self._keys) + 1] = stored
        wanted[0] = wanted[-1] = False
        edges = np.flatnonzero(wanted[1:] != wanted[:-1]).tolist()
        for start, stop in zip(edges[0::2], edges[1::2], strict=True):
            yield start, stop - start


def load_window(disk_map: DiskMap, first_leaf: int, leaves: int) -> Window:
    """Read up to ``leaves``, at most ``WINDOW_LEAVES``, from ``first_leaf`` on. Raises
    ``DamageFound``."""
    assert leaves <= WINDOW_LEAVES
    names: dict[bytes, int] = {}
    digests: dict[int, bytes] = {}
    keys: list[I64] = []
    blocks = mapped = 0
    for index in range(first_leaf, min(first_leaf + leaves, disk_map.leaves)):
        start, length = blocks, disk_map.leaf_blocks(index)
        blocks += length
        leaf, child = disk_map.leaf(index), disk_map.leaf_child(index)
        if leaf is None or child is None:
            continue
        mapped += length
        digests[index] = child.digest
        at = np.flatnonzero(leaf.pack != ZERO)
        if not len(at):
            continue
        frame, slot = np.divmod(leaf.ordinal[at], FRAME_BLOCKS)
        if frame.max() >= PACK_MAX_BLOCKS:
            name = leaf.packs[leaf.pack[at[frame.argmax()]]]
            raise DamageFound(f"pack {name.hex()} lacks frames that a disk map names")
        number = np.array([names.setdefault(n, len(names)) for n in leaf.packs], dtype=np.int64)
        key = number[leaf.pack[at]] << _FRAME_BITS | frame
        key = key << _PLACE_BITS | (at + start)
        keys.append(key << _SLOT_BITS | slot)
    joined = np.concatenate([*keys, np.zeros(0, dtype=np.int64)])
    joined.sort()
    again = np.zeros(len(joined), dtype=np.bool_)
    return Window(first_leaf * LEAF_BLOCKS, blocks, mapped, digests, tuple(names), joined, again)


def stored_bytes(disk_map: DiskMap, first_leaf: int = 0) -> int:
    """How many bytes a restore writes from a leaf on, but for the cut at the end. Reads every
    leaf from there."""
    total = 0
    for index in disk_map.mapped_leaves():
        leaf = disk_map.leaf(index) if index >= first_leaf else None
        if leaf is not None:
            total += int((leaf.pack != ZERO).sum()) * BLOCK_BYTES
    return total


def mapped_bytes(disk_map: DiskMap) -> int:
    """The size of all leaves that are not zeroes throughout: known without reading them."""
    return sum(disk_map.leaf_blocks(i) * BLOCK_BYTES for i in disk_map.mapped_leaves())


def runs(position: I64, place: I64) -> Iterator[tuple[int, int, int]]:
    """(position, place, number of blocks) of each run that is in one piece both where it lies and
    on the disk."""
    joined = (np.diff(position) == 1) & (np.diff(place) == 1)
    first = np.append(0, np.flatnonzero(~joined) + 1)
    count = np.diff(np.append(first, len(place)))
    columns = (position[first], place[first], count)
    return zip(*(column.tolist() for column in columns), strict=True)


def _places(keys: I64) -> I64:
    return keys >> _SLOT_BITS & _mask(_PLACE_BITS)


def _mask(bits: int) -> int:
    return (1 << bits) - 1
