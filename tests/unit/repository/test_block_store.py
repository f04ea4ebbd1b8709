"""Many threads store at once: a block is stored once, and comes back, whoever claims it first."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import MAX_ORDINAL
from drvm.core.errors import StoreRefused
from drvm.core.extents import Extent, ExtentKind
from drvm.repository import pack
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap
from drvm.repository.reader import read_disk
from drvm.repository.session import Session
from drvm.repository.writer import BlockStore, Tally
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.faults import FaultyStore, within

__all__ = ["cheap_key_derivation"]

ONE = BLOCK_BYTES


def block(kind: int) -> bytes:
    return bytes(ONE) if kind == 0 else random.Random(kind).randbytes(64) * 64


def store_parts(session: Session, content: bytes, cuts: list[int], threads: int) -> DiskWriter:
    """A disk of one leaf, its parts all given at once, by so many threads."""
    disk = session.disk(len(content), None)
    edges = [
        0,
        *sorted({cut for cut in cuts if 0 < cut < len(content) // ONE}),
        len(content) // ONE,
    ]
    start = threading.Barrier(threads)

    def give(number: int) -> None:
        start.wait(20)
        for place, part in parts[number::threads]:
            place.fill(part)

    parts = []
    for first, end in itertools.pairwise(edges):
        extent = Extent(first * ONE, (end - first) * ONE, ExtentKind.DATA)
        parts.append((disk.place([extent]), content[extent.offset : extent.end]))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(give, number) for number in range(threads)]:
            done.result()
    disk.placed(len(content))
    return disk


def content_of(vault: Vault, session: Session, size_bytes: int) -> bytes:
    (root,) = session.finish().roots
    disk_map = DiskMap(vault.repository.packs.blob, root, size_bytes)
    content = bytearray(size_bytes)
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        content[offset : offset + len(data)] = data
    return bytes(content)


@pytest.fixture
def vault() -> Vault:
    vault = new_vault(FaultyStore())
    vault.repository.refresh()
    return vault


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=400),
    st.lists(st.integers(1, 399), max_size=30),
    st.integers(1, 6),
    st.integers(5_000, 100_000),
)
def test_whatever_threads_store_at_once_is_stored_once_and_comes_back(kinds, cuts, threads, room):
    content = b"".join(block(kind) for kind in kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + room)
        vault = new_vault()
        vault.repository.refresh()
        with vault.repository.session(level=1) as session:
            disk = store_parts(session, content, cuts, threads)
            assert content_of(vault, session, len(content)) == content
    assert disk.tally.new_bytes == len(set(kinds) - {0}) * ONE


def test_a_block_that_another_thread_is_compressing_is_not_stored_again(vault, monkeypatch):
    """The second thread comes while the first is in the middle of its frame."""
    content = b"".join(block(kind) for kind in range(1, FRAME_BLOCKS + 1))
    inside, go_on = threading.Event(), threading.Event()
    encode = frames.encode

    def slow(plain, level):
        inside.set()
        assert go_on.wait(20)
        return encode(plain, level)

    monkeypatch.setattr(frames, "encode", slow)
    with vault.repository.session(level=1) as session, ThreadPoolExecutor(1) as pool:
        disk = session.disk(2 * len(content), None)
        one, two = (
            disk.place([Extent(first, len(content), ExtentKind.DATA)])
            for first in (0, len(content))
        )
        first = pool.submit(one.fill, content)
        assert inside.wait(20)
        two.fill(content)
        assert not first.done()
        go_on.set()
        first.result()
        disk.placed(2 * len(content))
        assert content_of(vault, session, 2 * len(content)) == content * 2
    assert disk.tally.new_bytes == len(content)


def test_frames_lie_in_the_order_of_their_claims_whoever_is_done_first(vault, monkeypatch):
    late, go_on = block(1), threading.Event()
    encode = frames.encode

    def slow(plain, level):
        if bytes(plain[:ONE]) == late:
            assert go_on.wait(20)
        return encode(plain, level)

    monkeypatch.setattr(frames, "encode", slow)
    contents = [
        b"".join(block(kind) for kind in range(first, first + FRAME_BLOCKS))
        for first in (1, 1 + FRAME_BLOCKS)
    ]
    with vault.repository.session(level=1) as session, ThreadPoolExecutor(1) as pool:
        disk = session.disk(2 * len(contents[0]), None)
        one, two = (
            disk.place([Extent(n * len(contents[0]), len(contents[0]), ExtentKind.DATA)])
            for n in (0, 1)
        )
        first = pool.submit(one.fill, contents[0])
        while session._blocks._claims < 1:
            assert not first.done()
        two.fill(contents[1])
        go_on.set()
        first.result()
        disk.placed(2 * len(contents[0]))
        assert content_of(vault, session, 2 * len(contents[0])) == b"".join(contents)
    (name,) = vault.repository._index.known()
    ids, _ = vault.repository.packs.ids(name)
    assert np.array_equal(ids, vault.repository.hasher.ids(b"".join(contents)))


def test_what_fails_in_one_thread_ends_all_of_them_with_that_error(vault, monkeypatch):
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 20_000)
    refused = StoreRefused("the bucket is full")

    def refuse(verb: str, name: str) -> None:
        if verb == "put":
            raise refused

    vault.store.before = refuse
    seeds = random.Random(3)
    contents = [seeds.randbytes(64 * ONE) for _ in range(8)]

    def save() -> None:
        with vault.repository.session(level=1) as session:
            disk = session.disk(8 * 64 * ONE, None)
            places = [
                disk.place([Extent(n * 64 * ONE, 64 * ONE, ExtentKind.DATA)]) for n in range(8)
            ]
            with ThreadPoolExecutor(4) as pool:
                done = [pool.submit(p.fill, c) for p, c in zip(places, contents, strict=True)]
            errors = {type(future.exception()) for future in done}
            assert errors <= {StoreRefused, type(None)}
            session._blocks.finish_pack()
            session._uploads.finish()

    def ends() -> None:
        with pytest.raises(StoreRefused, match="the bucket is full"):
            save()

    within(20, ends)


def test_a_session_of_more_blocks_than_a_leaf_can_count_stays_right(vault):
    """8 TiB of new blocks: ordinals of the session outgrow those that are stored."""
    content = b"".join(block(kind) for kind in range(1, 100))
    with vault.repository.session(level=1) as session:
        store = session._blocks
        store._next = (MAX_ORDINAL // FRAME_BLOCKS + 7) * FRAME_BLOCKS
        store._builder_first = store._next // FRAME_BLOCKS
        disk = session.disk(len(content), None)
        disk.data(content)
        assert content_of(vault, session, len(content)) == content


def test_what_rests_of_one_disk_is_not_counted_for_the_next(vault):
    with vault.repository.session(level=1) as session:
        first = session.disk(5 * ONE, None)
        first.data(b"".join(block(kind) for kind in range(1, 6)))
        second = session.disk(LEAF_BYTES, None)
        second.data(block(9))
        second.zero(LEAF_BYTES - ONE)
        session.finish()
    assert (first.tally.new_bytes, second.tally.new_bytes) == (5 * ONE, ONE)
    assert 0 < second.tally.stored_bytes < first.tally.stored_bytes


def test_after_an_error_nothing_is_stored_any_more(vault):
    with pytest.raises(MemoryError), vault.repository.session(level=1) as session:
        store: BlockStore = session._blocks
        with pytest.raises(MemoryError), store._failing():
            raise MemoryError
        rows = np.frombuffer(block(1), dtype=np.uint8).reshape(1, ONE)
        store.begin(Tally())
        store.store(rows, vault.repository.hasher.ids(block(1)), np.zeros(1, dtype=np.int64))
