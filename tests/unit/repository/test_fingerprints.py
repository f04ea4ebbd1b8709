"""What a host remembers of a disk saves look-ups, and is never believed without proof."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES, Ids, zero_ids
from drvm.chunker.runs import ZERO, Leaf
from drvm.repository import fingerprints as module
from drvm.repository.blobs import BlobWriter
from drvm.repository.diskmap import DiskMap, DiskMapWriter
from drvm.repository.fingerprints import Fingerprints
from drvm.repository.layout import pack_object
from drvm.repository.pack import SealedPack
from drvm.repository.packs import BlobRef
from drvm.repository.reader import read_disk
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from tests.unit.repository.conftest import PASSPHRASE, VM
from tests.unit.repository.test_round_trip import SMALL, noise

ONE = BLOCK_BYTES


class GivenUp(Exception):
    """The attempt ends here."""


class Host:
    """One host's view of a repository: its own cache, the same store."""

    def __init__(self, store: MemoryStore, cache: Path) -> None:
        with contextlib.suppress(Exception):
            Repository.create(store, PASSPHRASE)
        self.cache = cache
        self.repository = Repository.open(store, PASSPHRASE, cache)
        self.looked_up = 0
        lookup = self.repository._index.lookup

        def counted(ids: Ids):
            self.looked_up += len(ids)
            return lookup(ids)

        self.repository._index.lookup = counted

    def save(
        self,
        content: bytes,
        parent: DiskMap | None,
        *,
        target: str = "vda",
        before_the_end: Callable[[], None] = lambda: None,
    ) -> DiskMap:
        self.repository.refresh()
        with (
            self.repository.session(level=1) as session,
            self.repository.fingerprints(VM, target) as fingerprints,
        ):
            disk = session.disk(len(content), parent, fingerprints)
            for at in range(0, len(content), 7 * ONE):
                disk.data(content[at : at + 7 * ONE])
            before_the_end()
            (root,) = session.finish().roots
        return self.map(root, len(content))

    def map(self, root: BlobRef | None, size: int) -> DiskMap:
        return DiskMap(self.repository.packs.blob, root, size)

    def load(self, disk_map: DiskMap) -> bytes:
        content = bytearray(disk_map.size_bytes)
        for offset, data in read_disk(disk_map, self.repository.packs, self.repository.hasher):
            content[offset : offset + len(data)] = data
        return bytes(content)

    def emit(self, pack: SealedPack) -> None:
        self.repository.store.put(pack_object(pack.name), pack.data)

    def file(self) -> Path:
        (path,) = self.cache.glob("*/fingerprints/*")
        return path


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(MemoryStore(), tmp_path)


def changed(content: bytes, block: int) -> bytes:
    return content[: block * ONE] + noise(ONE, 77) + content[(block + 1) * ONE :]


def test_a_full_read_looks_up_only_what_changed(host):
    content = noise(SMALL)
    parent = host.save(content, None)
    host.looked_up = 0
    again = host.save(changed(content, 5), parent)
    assert host.looked_up == 1
    assert host.load(again) == changed(content, 5)


def test_an_attempt_that_was_given_up_leaves_nothing_that_is_believed(host):
    content = noise(SMALL)
    parent = host.save(content, None)

    def give_up() -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        host.save(noise(SMALL, 2), parent, before_the_end=give_up)
    host.looked_up = 0
    again = host.save(changed(content, 5), parent)
    assert host.looked_up == SMALL // ONE
    assert host.load(again) == changed(content, 5)


def test_two_hosts_by_turns_tell_each_other_nothing_wrong(host, tmp_path_factory):
    other = Host(host.repository.store, tmp_path_factory.mktemp("other"))
    content = noise(SMALL)
    parent = host.save(content, None)
    for number, here in enumerate([other, host, other, host, host]):
        content = changed(content, number)
        parent = here.save(content, here.map(parent._root, len(content)))
        assert here.load(parent) == content


def test_a_machine_that_was_rolled_back_is_compared_with_its_latest_point(host):
    old, new = noise(SMALL), changed(noise(SMALL), 3)
    first = host.save(old, None)
    second = host.save(new, first)
    third = host.save(old, second)
    assert host.load(third) == old


def test_another_disk_in_the_place_of_the_first_shares_nothing_by_mistake(host):
    parent = host.save(noise(SMALL), None)
    again = host.save(noise(SMALL, 5), parent)
    assert host.load(again) == noise(SMALL, 5)


@pytest.mark.parametrize("size", [SMALL - ONE, SMALL - 100, SMALL + 100, SMALL + 9 * ONE, 0])
def test_a_disk_of_another_size_is_right(host, size):
    content = (noise(SMALL) + noise(10 * ONE, 3))[:size]
    parent = host.save(noise(SMALL), None)
    again = host.save(content, parent)
    assert host.load(again) == content
    assert host.load(host.save(content, again)) == content


def lying(host: Host, content: bytes, block: int, *, calls_zeroes: bool) -> DiskMap:
    """The disk's map, right but for a block: its ids are those that the digest stands for."""
    true = host.save(content, None)
    leaf = true.leaf(0)
    pack, ordinal = leaf.pack.copy(), leaf.ordinal.copy()
    pack[block], ordinal[block] = (ZERO, 0) if calls_zeroes else (0, 1)
    writer = DiskMapWriter(blobs := BlobWriter(host.repository._sealer, host.emit), SMALL, None)
    writer.put(0, Leaf(leaf.packs, pack, ordinal), true.leaf_child(0).digest)
    root = writer.finish()
    blobs.finish()
    return host.map(blobs.ref(root), SMALL)


@pytest.mark.parametrize("change", [None, 7])
@pytest.mark.parametrize("calls_zeroes", [True, False])
def test_a_parent_that_calls_zeroes_what_is_none_is_not_believed(host, change, calls_zeroes):
    content = noise(SMALL) if calls_zeroes else noise(3 * ONE) + bytes(ONE) + noise(SMALL - 4 * ONE)
    parent = lying(host, content, 3, calls_zeroes=calls_zeroes)
    content = content if change is None else changed(content, change)
    assert host.load(host.save(content, parent)) == content


def test_what_was_kept_of_disks_that_are_long_gone_is_removed(host):
    host.save(noise(SMALL), None)
    host.save(noise(SMALL), None, target="vdb")
    gone, kept = sorted(host.cache.glob("*/fingerprints/*"))
    now = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    for path, days in ((gone, 61), (kept, 59)):
        used = (now - dt.timedelta(days=days)).timestamp()
        os.utime(path, (used, used))
    host.repository.sweep_cache(now)
    assert host.file() == kept


def test_a_disk_that_is_backed_up_is_not_long_gone(host):
    parent = host.save(noise(SMALL), None)
    os.utime(host.file(), (0, 0))
    host.save(noise(SMALL), parent)
    host.repository.sweep_cache(dt.datetime.now(dt.UTC))
    assert host.file().exists()


@pytest.mark.parametrize("at", [0, 16, 4096 // 16, SMALL // ONE * 16 - 1])
def test_a_page_that_was_torn_is_not_believed(host, at):
    content = noise(SMALL)
    parent = host.save(content, None)
    stored = bytearray(host.file().read_bytes())
    at = min(at, len(stored) - 1)
    stored[at] ^= 1
    host.file().write_bytes(stored)
    host.looked_up = 0
    again = host.save(changed(content, 5), parent)
    assert host.looked_up == SMALL // ONE
    assert host.load(again) == changed(content, 5)


def test_two_processes_at_once_harm_each_other_in_nothing(host):
    first = host.save(noise(SMALL), None)
    twin = Host(host.repository.store, host.cache)
    maps: list[DiskMap] = []

    def the_other_one() -> None:
        maps.append(twin.save(changed(noise(SMALL), 9), twin.map(first._root, SMALL)))

    mine = host.save(changed(noise(SMALL), 4), first, before_the_end=the_other_one)
    assert host.load(mine) == changed(noise(SMALL), 4)
    assert twin.load(maps[0]) == changed(noise(SMALL), 9)
    assert host.load(host.save(noise(SMALL), mine)) == noise(SMALL)


steps = st.lists(
    st.tuples(
        st.sampled_from(["keep", "give up", "cut", "flip", "elsewhere"]),
        st.integers(0, 45 * ONE),
        st.lists(st.integers(0, 3), min_size=45, max_size=45),
    ),
    max_size=5,
)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_whatever_befalls_the_file_every_point_is_the_disk(tmp_path_factory, history):
    host = Host(MemoryStore(), tmp_path_factory.mktemp("host"))
    other = Host(host.repository.store, tmp_path_factory.mktemp("other"))
    parent = host.save(noise(30 * ONE), None)
    for what, at, kinds in history:
        blocks = [
            noise(ONE, kind * 100 + n) if kind else bytes(ONE) for n, kind in enumerate(kinds)
        ]
        content = b"".join(blocks)[:at]
        here = other if what == "elsewhere" else host
        if what == "give up":
            with pytest.raises(GivenUp):
                host.save(content, parent, before_the_end=_raise)
            continue
        if what in ("cut", "flip"):
            stored = bytearray(host.file().read_bytes())
            if what == "cut":
                del stored[at % (len(stored) + 1) :]
            elif stored:
                stored[at % len(stored)] ^= 0x10
            host.file().write_bytes(stored)
        parent = here.save(content, here.map(parent._root, parent.size_bytes))
        assert here.load(parent) == content
        parent = host.map(parent._root, len(content))


def _raise() -> None:
    raise GivenUp


def test_leaves_are_apart_and_what_lies_between_takes_no_room(tmp_path):
    ids = np.arange(2 * LEAF_BLOCKS, dtype=np.uint64).reshape(-1, 2)
    with Fingerprints(tmp_path, VM, "vda") as fingerprints:
        fingerprints.write(1000, ids)
        fingerprints.write(3, ids[:5])
        assert (fingerprints.read(1000, LEAF_BLOCKS) == ids).all()
        assert (fingerprints.read(3, 5) == ids[:5]).all()
        assert not fingerprints.read(4, LEAF_BLOCKS).any()
        assert len(fingerprints.read(1001, 5)) == 0
    (path,) = tmp_path.iterdir()
    assert path.stat().st_blocks * 512 < 2 * LEAF_BLOCKS * 16
    assert path.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_used_costs_look_ups_and_nothing_else(host, monkeypatch):
    content = noise(SMALL)
    parent = host.save(content, None)
    before = host.file().read_bytes()
    monkeypatch.setattr(module, "_LEAST_FREE", 2.0)  # nothing is free enough
    parent = host.save(changed(content, 1), parent)
    assert host.file().read_bytes() == before
    host.file().unlink()
    directory = next(iter(host.cache.glob("*/fingerprints")))
    directory.rmdir()
    directory.write_bytes(b"")
    assert host.load(host.save(content, parent)) == content


def test_unchanged_ranges_of_a_leaf_need_no_id_tables_where_the_file_knows_them(host):
    content = noise(SMALL)
    parent = host.save(content, None)
    host.repository._index.stored_ids = lambda number, ordinals: None
    host.repository.refresh()
    with (
        host.repository.session(level=1) as session,
        host.repository.fingerprints(VM, "vda") as fingerprints,
    ):
        disk = session.disk(SMALL, parent, fingerprints)
        disk.data(noise(ONE, 9))
        assert disk.unchanged(SMALL - ONE)
        (root,) = session.finish().roots
    assert host.load(host.map(root, SMALL)) == noise(ONE, 9) + content[ONE:]


def test_a_disk_of_many_leaves_is_known_leaf_by_leaf(host):
    size = 3 * LEAF_BYTES
    places = [0, LEAF_BYTES, 2 * LEAF_BYTES + 5 * ONE]

    def save(seeds: list[int], parent: DiskMap | None) -> DiskMap:
        host.repository.refresh()
        with (
            host.repository.session(level=1) as session,
            host.repository.fingerprints(VM, "vdb") as fingerprints,
        ):
            disk = session.disk(size, parent, fingerprints)
            for place, seed in zip(places, seeds, strict=True):
                disk.zero(place - disk.position_bytes)
                disk.data(noise(4 * ONE, seed))
            disk.zero(size - disk.position_bytes)
            (root,) = session.finish().roots
        return host.map(root, size)

    parent = save([1, 2, 3], None)
    host.looked_up = 0
    again = save([1, 4, 3], parent)
    assert host.looked_up == 4
    assert again.leaf_child(0) == parent.leaf_child(0)
    content = host.load(again)
    assert [content[at : at + 4 * ONE] for at in places] == [noise(4 * ONE, s) for s in (1, 4, 3)]


def test_writing_ends_where_the_file_system_fills_up_meanwhile(tmp_path, monkeypatch):
    with Fingerprints(tmp_path, "vm", "vda") as kept:
        kept.write(0, zero_ids(4))
        assert len(kept.read(0, 4)) == 4
        monkeypatch.setattr(module, "_LEAST_FREE", 2.0)  # nothing is free enough
        kept.write(1, zero_ids(4))
        assert len(kept.read(1, 4)) == 0
