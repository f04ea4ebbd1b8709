"""Reading packs by range: each frame once, in few requests."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES
from drvm.chunker.frames import FRAME_BYTES
from drvm.core.errors import DamageFound
from drvm.repository import packs as packs_module
from drvm.repository.layout import pack_object
from drvm.repository.pack import PackBuilder, SealedPack
from drvm.repository.packs import BlobRef, Open, PackReader
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_pack import SEALER, data_pack, meta_pack


def stored(*packs: SealedPack) -> FaultyStore:
    store = FaultyStore()
    for pack in packs:
        store.put(pack_object(pack.name), pack.data)
    store.calls.clear()
    return store


def noise_pack(count: int) -> tuple[SealedPack, list[bytes]]:
    builder, plains = PackBuilder(SEALER, "data"), []
    for _ in range(count):
        plain = os.urandom(BLOCK_BYTES)
        builder.add(*frames.encode(plain, 1), len(plain), os.urandom(16))
        plains.append(plain)
    return builder.finish(), plains


def opened(each: Open) -> bytes:
    room = bytearray(FRAME_BYTES)
    return bytes(room[: each(memoryview(room))])


NOISE, NOISE_PLAINS = noise_pack(60)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 59), max_size=40), st.integers(1, 12), st.integers(0, 12))
def test_every_frame_asked_for_is_read_once_in_order_within_the_limits(wanted, most, gap):
    reader = PackReader(stored(NOISE), SEALER)
    stored_bytes = BLOCK_BYTES + 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs_module, "MAX_RANGE_BYTES", most * stored_bytes)
        patch.setattr(packs_module, "MAX_GAP_BYTES", gap * stored_bytes)
        groups = reader.ranges(NOISE.name, np.array(wanted, dtype=np.int64))
    assert [number for group in groups for number in group] == sorted(set(wanted))
    for group in groups:
        assert group[-1] - group[0] < most
        assert all(after - before <= gap + 1 for before, after in itertools.pairwise(group))
        assert list(reader.frames(NOISE.name, group)) == [NOISE_PLAINS[n] for n in group]


def test_one_range_is_one_request():
    store = stored(NOISE)
    reader = PackReader(store, SEALER)
    (group,) = reader.ranges(NOISE.name, np.arange(0, 60, 7))
    store.calls.clear()
    assert len(list(reader.frames(NOISE.name, group))) == 9
    assert store.calls == [f"get {pack_object(NOISE.name)}"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 59), min_size=1), st.integers(1, 12), st.booleans())
def test_a_sweep_gives_every_frame_asked_for_once_in_groups_within_the_limit(wanted, most, known):
    store = stored(NOISE)
    reader = PackReader(store, SEALER)
    if known:
        reader.open(NOISE.name)
    lengths, get = [], store.get
    store.get = lambda name, **range: lengths.append(range["length"]) or get(name, **range)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs_module, "MAX_SWEEP_BYTES", most * (BLOCK_BYTES + 16))
        patch.setattr(packs_module, "TAIL_GUESS_BYTES", 5000)
        patch.setattr(packs_module, "_MANY_FRAMES", 5)
        swept = reader.sweep(NOISE.name, np.array(wanted))
        groups = [(group.tolist(), [opened(each) for each in opens]) for group, opens in swept]
    found = sorted(pair for group, plain in groups for pair in zip(group, plain, strict=True))
    assert found == [(number, NOISE_PLAINS[number]) for number in sorted(set(wanted))]
    assert all(length <= most * (BLOCK_BYTES + 16) for length in lengths)


def test_a_sweep_of_a_whole_pack_costs_a_request_for_each_half():
    store = stored(NOISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs_module, "MAX_SWEEP_BYTES", len(NOISE.data) // 2 + 5000)
        groups = list(PackReader(store, SEALER).sweep(NOISE.name, np.arange(60)))
    assert [call.split()[0] for call in store.calls] == ["tail", "get"]
    assert sum(len(group) for group, _ in groups) == 60


def test_a_sweep_lets_a_group_go_before_it_fetches_the_next():
    reader = PackReader(stored(NOISE), SEALER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs_module, "MAX_SWEEP_BYTES", 20_000)
        sweep = reader.sweep(NOISE.name, np.arange(60))
        _, opens = next(sweep)
        next(opens)
        next(sweep)
    assert next(opens, None) is None


@pytest.mark.parametrize("numbers", [[60], [0, 1 << 40]])
def test_a_frame_that_the_pack_does_not_have_is_damage(numbers):
    with pytest.raises(DamageFound, match="lacks frames"):
        PackReader(stored(NOISE), SEALER).ranges(NOISE.name, np.array(numbers))
    with pytest.raises(DamageFound, match="lacks frames"):
        next(PackReader(stored(NOISE), SEALER).sweep(NOISE.name, np.array(numbers)))


@pytest.mark.parametrize("number", [-1, 2, 1 << 40])
def test_a_blob_that_the_pack_does_not_have_is_damage(number):
    pack = meta_pack(b"a", b"b")
    with pytest.raises(DamageFound, match="no blob"):
        PackReader(stored(pack), SEALER).blob(BlobRef(pack.name, number))


def test_blocks_and_blobs_are_not_taken_for_each_other():
    meta, data = meta_pack(b"a"), data_pack(1)
    reader = PackReader(stored(meta, data), SEALER)
    with pytest.raises(DamageFound):
        reader.blob(BlobRef(data.name, 0))
    with pytest.raises(DamageFound):
        reader.ranges(meta.name, np.array([0]))
    assert reader.ids(meta.name) is None


def test_a_pack_that_is_missing_is_damage_to_what_names_it():
    reader = PackReader(FaultyStore(), SEALER)
    for read in (reader.open, reader.ids, reader.verify):
        with pytest.raises(DamageFound, match="missing"):
            read(bytes(32))


def test_blobs_at_the_edges_of_windows_come_back(monkeypatch):
    monkeypatch.setattr(packs_module, "_BLOB_WINDOW_BYTES", 1000)
    plains = [os.urandom(size) for size in (300, 684, 0, 1, 999, 984, 2500, 16, 5000, 400)]
    pack = meta_pack(*plains)
    reader = PackReader(stored(pack), SEALER)
    for number in [*range(len(plains)), *reversed(range(len(plains)))]:
        assert reader.blob(BlobRef(pack.name, number)) == plains[number]


def test_neighbouring_blobs_are_read_in_one_request():
    pack = meta_pack(*(os.urandom(100) for _ in range(50)))
    store = stored(pack)
    reader = PackReader(store, SEALER)
    for number in range(50):
        reader.blob(BlobRef(pack.name, number))
    assert len(store.calls) == 2  # the tail, the window


def test_tables_of_packs_are_kept_within_their_bytes(monkeypatch):
    small = [noise_pack(10)[0] for _ in range(5)]
    monkeypatch.setattr(packs_module, "_TABLES_BYTES", 3 * 10 * 32)
    store = stored(*small, NOISE)
    reader = PackReader(store, SEALER)
    for pack in (*small, small[4], small[2], NOISE, NOISE, small[2]):
        assert reader.open(pack.name).name == pack.name
    asked = [call.split("/")[1] for call in store.calls]
    names = [pack.name.hex() for pack in (*small, NOISE)]
    assert asked == [*names, small[2].name.hex()]  # only the largest stays, and goes again


def test_a_table_longer_than_the_first_guess_is_read_whole(monkeypatch):
    monkeypatch.setattr(packs_module, "TAIL_GUESS_BYTES", 144)
    reader = PackReader(stored(NOISE), SEALER)
    assert len(reader.open(NOISE.name).frames.offset) == 60
    ids, ordinals = reader.ids(NOISE.name)
    assert len(ids) == len(ordinals) == 60


def test_the_tables_of_a_small_pack_cost_one_request():
    store = stored(NOISE)
    PackReader(store, SEALER).ids(NOISE.name)
    assert len(store.calls) == 1


@pytest.mark.parametrize("keep", [0, 1, 143, 144, 156])
def test_a_pack_of_which_only_an_end_is_left_is_damage(keep):
    data = NOISE.data[len(NOISE.data) - keep :]
    reader = PackReader(stored(SealedPack(NOISE.name, data)), SEALER)
    for read in (reader.ids, reader.open, reader.verify):
        with pytest.raises(DamageFound):
            read(NOISE.name)


def test_a_pack_whose_beginning_was_cut_off_is_damage_when_it_is_read():
    shorter = SealedPack(NOISE.name, NOISE.data[-3000:])
    reader = PackReader(stored(shorter), SEALER)
    (group,) = reader.ranges(NOISE.name, np.array([59]))
    with pytest.raises(DamageFound):
        list(reader.frames(NOISE.name, group))
    pack = meta_pack(*(os.urandom(5000) for _ in range(3)))
    reader = PackReader(stored(SealedPack(pack.name, pack.data[-2000:])), SEALER)
    with pytest.raises(DamageFound):
        reader.blob(BlobRef(pack.name, 2))


def test_verify_needs_no_key_and_finds_every_kind_of_damage():
    for at in (0, len(NOISE.data) // 2, -FRAME_BYTES // 64, -200, -1):
        broken = bytearray(NOISE.data)
        broken[at] ^= 1
        with pytest.raises(DamageFound):
            PackReader(stored(SealedPack(NOISE.name, bytes(broken))), SEALER).verify(NOISE.name)
    PackReader(stored(NOISE), SEALER).verify(NOISE.name)
