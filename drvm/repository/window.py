"""A window of a disk map in the order of the packs: what a restore fetches, and in which order.

A block of a window is one number, pack | ordinal | place on the disk, so that a single sort puts
all of them in the order in which they lie in the packs: eight bytes a block, whatever the age of
the disk. docs/adr/025-restore-order.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

_PLACE_BITS = (WINDOW_LEAVES * LEAF_BLOCKS - 1).bit_length()
_ORDINAL_BITS = (PACK_MAX_BLOCKS * FRAME_BLOCKS - 1).bit_length()
_PACK_BITS = _PLACE_BITS  # no more packs than blocks
assert _PACK_BITS + _ORDINAL_BITS + _PLACE_BITS < 64

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackBlocks:
    """What is wanted of one pack, an entry per block: ascending ordinals (one may come many
    times), and places counted in blocks from the start of the window."""

    name: bytes
    ordinal: I64
    place: I64

    @property
    def frame(self) -> I64:
        """The number of each block's frame, ascending."""
        return self.ordinal // FRAME_BLOCKS

    def part(self, start: int, stop: int) -> PackBlocks:
        return PackBlocks(self.name, self.ordinal[start:stop], self.place[start:stop])

    def of_frame(self, number: int) -> PackBlocks:
        start, stop = np.searchsorted(self.frame, (number, number + 1)).tolist()
        return self.part(start, stop)

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(frame, slot, place, number of blocks) of each run that lies in one piece both in one
        frame and on the disk."""
        slot = self.ordinal % FRAME_BLOCKS
        joined = (np.diff(self.ordinal) == 1) & (np.diff(self.place) == 1) & (slot[1:] != 0)
        first = np.append(0, np.flatnonzero(~joined) + 1)
        count = np.diff(np.append(first, len(slot)))
        columns = (self.frame[first], slot[first], self.place[first], count)
        return zip(*(column.tolist() for column in columns), strict=True)


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

    @property
    def stored_blocks(self) -> int:
        return len(self._keys)

    def by_pack(self) -> Iterator[PackBlocks]:
        """Every stored block once, pack by pack."""
        return _by_pack(self._keys, self._packs)

    def stored(self) -> Iterator[tuple[int, int]]:
        """(place, number of blocks) of each range that does not read as zeroes, in the disk's
        order."""
        return self._ranges(stored=True)

    def zeroes(self) -> Iterator[tuple[int, int]]:
        """(place, number of blocks) of each range that reads as zeroes, in the disk's order."""
        return self._ranges(stored=False)

    def _ranges(self, *, stored: bool) -> Iterator[tuple[int, int]]:
        wanted = np.full(self.blocks + 2, not stored, dtype=np.bool_)
        wanted[(self._keys & _mask(_PLACE_BITS)) + 1] = stored
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
        ordinal = leaf.ordinal[at]
        if ordinal.max() >> _ORDINAL_BITS:
            name = leaf.packs[leaf.pack[at[ordinal.argmax()]]]
            raise DamageFound(f"pack {name.hex()} lacks frames that a disk map names")
        number = np.array([names.setdefault(n, len(names)) for n in leaf.packs], dtype=np.int64)
        pack = number[leaf.pack[at]] << (_ORDINAL_BITS + _PLACE_BITS)
        keys.append(pack | ordinal << _PLACE_BITS | (at + start))
    joined = np.concatenate([*keys, np.zeros(0, dtype=np.int64)])
    joined.sort()
    return Window(first_leaf * LEAF_BLOCKS, blocks, mapped, digests, tuple(names), joined)


def stored_bytes(disk_map: DiskMap) -> int:
    """How many bytes a restore writes, but for the cut at the end. Reads every leaf."""
    total = 0
    for index in range(disk_map.leaves):
        leaf = disk_map.leaf(index)
        if leaf is not None:
            total += int((leaf.pack != ZERO).sum()) * BLOCK_BYTES
    return total


def mapped_bytes(disk_map: DiskMap) -> int:
    """The size of all leaves that are not zeroes throughout: known without reading them."""
    return sum(
        disk_map.leaf_blocks(index) * BLOCK_BYTES
        for index in range(disk_map.leaves)
        if disk_map.leaf_child(index) is not None
    )


def _by_pack(keys: I64, packs: tuple[bytes, ...]) -> Iterator[PackBlocks]:
    shift = _ORDINAL_BITS + _PLACE_BITS
    start = 0
    while start < len(keys):
        number = int(keys[start]) >> shift
        stop = int(np.searchsorted(keys, (number + 1) << shift))
        own = keys[start:stop]
        ordinal = own >> _PLACE_BITS & _mask(_ORDINAL_BITS)
        yield PackBlocks(packs[number], ordinal, own & _mask(_PLACE_BITS))
        start = stop


def _mask(bits: int) -> int:
    return (1 << bits) - 1
