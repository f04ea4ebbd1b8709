"""Whatever a disk map looks like, and however it is divided, the disk comes back, and no frame is
fetched twice for one window."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, BlockHasher, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO, Leaf
from drvm.repository import packs as packs_module
from drvm.repository import reader
from drvm.repository.blobs import BlobWriter
from drvm.repository.diskmap import DiskMap, DiskMapWriter
from drvm.repository.layout import pack_object
from drvm.repository.pack import OpenPack, PackBuilder, SealedPack
from drvm.repository.packs import PackReader
from drvm.repository.reader import read_disk, write_disk
from drvm.store.memory import MemoryStore
from tests.unit.repository.test_pack import SEALER

HASHER = BlockHasher(SEALER.block_id_key(), SEALER.leaf_digest_key())
STORE = MemoryStore()
LEAVES = 3
ROOM = 1 << 26
"""For all frames that there are."""


def put(pack: SealedPack) -> None:
    STORE.put(pack_object(pack.name), pack.data)


def data_packs() -> dict[tuple[bytes, int], bytes]:
    """(pack, ordinal) -> block, of a few packs whose frames are not all full."""
    source = random.Random(3)
    blocks = {}
    for _ in range(4):
        builder, content = PackBuilder(SEALER, "data"), {}
        for number in range(source.randrange(1, 9)):
            count = source.choice([1, 7, FRAME_BLOCKS])
            plain = source.randbytes(count * BLOCK_BYTES)
            builder.add(*frames.encode(plain, 1), len(plain), HASHER.ids(plain).tobytes())
            for slot in range(count):
                block = plain[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES]
                content[number * FRAME_BLOCKS + slot] = block
        pack = builder.finish()
        put(pack)
        blocks |= {(pack.name, ordinal): block for ordinal, block in content.items()}
    return blocks


BLOCKS = data_packs()
ADDRESSES = sorted(BLOCKS)


@dataclass
class Made:
    disk_map: DiskMap
    content: dict[int, bytes]
    frames: list[set[tuple[bytes, int]]]
    """Those that each leaf needs."""


def addresses(source: random.Random, count: int) -> list[tuple[bytes, int]]:
    """Runs as a full backup leaves them, cut up by scattered blocks as age does."""
    found: list[tuple[bytes, int]] = []
    while len(found) < count:
        start = source.randrange(len(ADDRESSES))
        found += ADDRESSES[start : start + source.choice([1, 1, 3, 40])]
    return found[:count]


def made(seed: int, blocks: int, cut: int, filled: int) -> Made:
    """A disk of so many blocks, the last one ``cut`` bytes short; ``filled`` of each leaf."""
    source = random.Random(seed)
    size = blocks * BLOCK_BYTES - cut
    blobs = BlobWriter(SEALER, put)
    writer = DiskMapWriter(blobs, size, None)
    content: dict[int, bytes] = {}
    needed: list[set[tuple[bytes, int]]] = []
    for index in range(-(-blocks // LEAF_BLOCKS)):
        length = min(LEAF_BLOCKS, blocks - index * LEAF_BLOCKS)
        names = tuple(sorted({name for name, _ in ADDRESSES}))
        pack, ordinal, ids = np.full(length, ZERO), np.zeros(length, np.int64), zero_ids(length)
        needed.append(set())
        at = source.randrange(length)
        places = sorted({(at + source.choice([n, n * n])) % length for n in range(filled)})
        for place, (name, number) in zip(places, addresses(source, len(places)), strict=True):
            pack[place], ordinal[place] = names.index(name), number
            ids[place] = HASHER.ids(BLOCKS[name, number])[0]
            content[index * LEAF_BLOCKS + place] = BLOCKS[name, number]
            needed[-1].add((name, number // FRAME_BLOCKS))
        if source.random() < 0.9 and places:
            leaf = Leaf(names, pack, ordinal)
            writer.put(index, leaf, HASHER.leaf_digest(ids)[:16])
        else:
            for place in places:
                del content[index * LEAF_BLOCKS + place]
            needed[-1].clear()
    root = writer.finish()
    blobs.finish()
    reference = None if root is None else blobs.ref(root) if not hasattr(root, "pack") else root
    if blocks - 1 in content:
        content[blocks - 1] = content[blocks - 1][: BLOCK_BYTES - cut]
    return Made(DiskMap(PackReader(STORE, SEALER).blob, reference, size), content, needed)


class Taken(dict[int, bytes]):
    """Collects blocks by their number on the disk, and takes none twice."""

    def write(self, offset: int, data: memoryview) -> None:
        assert data.nbytes > 0 and offset % BLOCK_BYTES == 0
        for at in range(0, len(data), BLOCK_BYTES):
            number = (offset + at) // BLOCK_BYTES
            assert number not in self
            self[number] = bytes(data[at : at + BLOCK_BYTES])


@contextmanager
def counting(limits: dict[str, int]) -> Iterator[tuple[PackReader, Counter[tuple[bytes, int]]]]:
    counter: Counter[tuple[bytes, int]] = Counter()
    original = OpenPack.open_into

    def count(self, number, sealed, room):
        counter[self.name, number] += 1
        return original(self, number, sealed, room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenPack, "open_into", count)
        patch.setattr(packs_module, "MAX_RANGE_BYTES", limits["range"])
        patch.setattr(packs_module, "MAX_SWEEP_BYTES", max(limits["range"], 1 << 16))
        patch.setattr(packs_module, "_MANY_FRAMES", limits["many"])
        patch.setattr(packs_module, "MAX_GAP_BYTES", limits["gap"])
        patch.setattr(reader, "WINDOW_LEAVES", limits["leaves"])
        patch.setattr(reader, "_CACHE_BYTES", limits["cache"])
        yield PackReader(STORE, SEALER), counter


LIMITS = st.fixed_dictionaries(
    {
        "range": st.sampled_from([1, 5000, 200_000, 1 << 24]),
        "many": st.sampled_from([1, 20, 1 << 30]),
        "gap": st.sampled_from([0, 10_000, 1 << 20]),
        "leaves": st.integers(1, LEAVES),
        "cache": st.sampled_from([0, 200_000, ROOM]),
    }
)
DISKS = st.builds(
    made,
    st.integers(0, 1 << 32),
    st.builds(
        lambda leaves, rest: leaves * LEAF_BLOCKS + rest,
        st.integers(0, LEAVES - 1),
        st.integers(1, LEAF_BLOCKS),
    ),
    st.integers(0, BLOCK_BYTES - 1),
    st.sampled_from([0, 1, 90, 400]),
)
often = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


def most(disk: Made, leaves: int) -> Counter[tuple[bytes, int]]:
    """How often each frame may be fetched: once for each window of so many leaves."""
    counter: Counter[tuple[bytes, int]] = Counter()
    for start in range(0, len(disk.frames), leaves):
        counter.update(set().union(*disk.frames[start : start + leaves]))
    return counter


@often
@given(DISKS, LIMITS)
def test_a_disk_is_written_whole_and_frames_are_fetched_once_a_window(disk, limits):
    taken = Taken()
    with counting(limits) as (packs, fetched):
        count = write_disk(disk.disk_map, packs, HASHER, taken.write)
    assert taken == disk.content
    assert count == len(taken) * BLOCK_BYTES
    assert fetched == most(disk, limits["leaves"])


@often
@example(
    made(5, LEAVES * LEAF_BLOCKS, 5, 400),
    {"range": 1 << 24, "many": 1, "gap": 0, "leaves": 3, "cache": ROOM},
)
@given(DISKS, LIMITS)
def test_a_disk_is_read_in_order_and_frames_are_fetched_once_a_window_with_room(disk, limits):
    taken = Taken()
    end = 0
    with counting(limits) as (packs, fetched):
        for offset, data in read_disk(disk.disk_map, packs, HASHER):
            assert offset >= end
            end = offset + len(data)
            taken.write(offset, data)
    assert taken == disk.content
    allowed = most(disk, limits["leaves"] if limits["cache"] == ROOM else 1)
    assert fetched <= allowed
