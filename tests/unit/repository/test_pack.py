"""Packs come back as they went in, and a lying one, with or without the key, is refused."""

import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES
from drvm.chunker.frames import FRAME_BLOCKS, FRAME_BYTES
from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository import pack as pack_module
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.layout import PACK_MAX_BLOCKS, PACK_MAX_BYTES
from drvm.repository.pack import FOOTER_BYTES, OpenPack, PackBuilder, SealedPack, parse_footer

SEALER = Sealer(MasterKeys(bytes(range(32)), bytes(range(32, 64))), "00" * 16)
FOOTER = struct.Struct("<8sHBx4x32sQII32s32s16s")

blobs = st.lists(st.binary(max_size=400), min_size=1, max_size=8)
block_counts = st.lists(st.integers(1, FRAME_BLOCKS), min_size=1, max_size=6)


def meta_pack(*plains: bytes) -> SealedPack:
    builder = PackBuilder(SEALER, "meta")
    for plain in plains:
        codec, payload = frames.encode(plain, 9)
        builder.add(codec, payload, len(plain))
    return builder.finish()


def data_pack(*counts: int) -> SealedPack:
    builder = PackBuilder(SEALER, "data")
    for number, blocks in enumerate(counts):
        plain = number.to_bytes(2) * (blocks * BLOCK_BYTES // 2)
        ids = b"".join(struct.pack(">HH", number, slot) * 4 for slot in range(blocks))
        builder.add(*frames.encode(plain, 1), len(plain), ids)
    return builder.finish()


def opened(pack: SealedPack) -> OpenPack:
    footer = parse_footer(pack.name, pack.data)
    tables = pack.data[footer.body_bytes : -FOOTER_BYTES]
    return OpenPack(SEALER, pack.name, footer, tables[footer.ids_bytes :])


def sealed_ids(pack: SealedPack) -> bytes:
    footer = parse_footer(pack.name, pack.data)
    return pack.data[footer.body_bytes : footer.body_bytes + footer.ids_bytes]


def forged(table: bytes, ids: bytes = b"", body: bytes = b"", kind: int = 1) -> SealedPack:
    """A pack whose tables are what a lying key holder likes."""
    salt = os.urandom(32)
    cipher = SEALER.cipher(b"pack-data" if kind == 1 else b"pack-meta", salt)
    sealed, sealed_table = cipher.seal(1, 0, ids), cipher.seal(2, 0, table)
    lengths = (len(body), len(sealed), len(sealed_table))
    sums = (blake3(body).digest(), hashlib.sha256(sealed + sealed_table).digest())
    footer = FOOTER.pack(b"drvmpack", 0, kind, salt, *lengths, *sums, bytes(16))
    return SealedPack(hashlib.sha256(footer).digest(), body + sealed + sealed_table + footer)


def table_of(*entries: tuple[int, int, int]) -> bytes:
    columns = np.array(entries, dtype="<u4").reshape(-1, 3).T
    return zstandard.compress(struct.pack("<I", len(entries)) + columns.tobytes())


@settings(deadline=None)
@given(blobs)
def test_blobs_come_back_as_they_went_in(plains):
    pack = meta_pack(*plains)
    reader = opened(pack)
    for number, plain in enumerate(plains):
        start = int(reader.frames.offset[number])
        end = start + int(reader.frames.stored_bytes[number])
        assert reader.open_frame(number, pack.data[start:end]) == plain


@settings(deadline=None)
@given(block_counts)
def test_ids_come_back_with_the_ordinals_of_their_blocks_also_behind_partial_frames(counts):
    pack = data_pack(*counts)
    ids, ordinals = opened(pack).ids(sealed_ids(pack))
    expected = [(n, slot) for n, blocks in enumerate(counts) for slot in range(blocks)]
    assert ordinals.tolist() == [n * FRAME_BLOCKS + slot for n, slot in expected]
    assert ids.tobytes() == b"".join(struct.pack(">HH", *place) * 4 for place in expected)


def test_packs_of_equal_content_have_different_names():
    assert meta_pack(b"same").name != meta_pack(b"same").name


def test_a_frame_does_not_open_in_the_place_of_another():
    pack = meta_pack(b"first", b"other")
    reader = opened(pack)
    start, length = int(reader.frames.offset[0]), int(reader.frames.stored_bytes[0])
    with pytest.raises(DamageFound, match="frame 1"):
        reader.open_frame(1, pack.data[start : start + length])


@given(st.data())
@settings(deadline=None)
def test_every_flipped_bit_is_found_without_a_key(data):
    pack = meta_pack(b"first", b"other")
    stored = bytearray(pack.data)
    at = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[at // 8] ^= 1 << at % 8
    try:
        footer = parse_footer(pack.name, bytes(stored))
    except DamageFound:
        return
    body = bytes(stored[: footer.body_bytes])
    tables = bytes(stored[footer.body_bytes : -FOOTER_BYTES])
    assert (
        blake3(body).digest() != footer.body_blake3
        or hashlib.sha256(tables).digest() != footer.tables_sha256
    )


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_footer_of_a_pack(data):
    with pytest.raises(DamageFound):
        parse_footer(bytes(32), data)


@given(st.binary(min_size=FOOTER_BYTES, max_size=FOOTER_BYTES))
def test_a_footer_that_names_itself_but_is_nonsense_is_refused(footer):
    with pytest.raises((DamageFound, UnsupportedFormat)):
        parse_footer(hashlib.sha256(footer).digest(), footer)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [(0, (0, 0, 0)), (3, (0, 0, 0)), (1, (1 << 63, 0, 0)), (1, (0, 0xFFFFFFFF, 0))],
)
def test_an_impossible_footer_is_refused(kind, lengths):
    footer = FOOTER.pack(b"drvmpack", 0, kind, bytes(32), *lengths, bytes(32), bytes(32), bytes(16))
    with pytest.raises(DamageFound, match="impossible"):
        parse_footer(hashlib.sha256(footer).digest(), footer)


FULL = (10, FRAME_BYTES, 1)


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"not zstd",
        zstandard.compress(b""),
        zstandard.compress(b"\x01\x00\x00"),
        zstandard.compress(struct.pack("<I", 2) + bytes(12)),
        zstandard.compress(struct.pack("<I", 0xFFFFFFFF) + bytes(12)),
        table_of((11, BLOCK_BYTES, 1)),
        table_of((0xFFFFFFFF, BLOCK_BYTES, 1), (0xFFFFFFFF, BLOCK_BYTES, 1)),
        table_of((10, BLOCK_BYTES + 1, 1)),
        table_of((10, FRAME_BYTES + BLOCK_BYTES, 1)),
        table_of((10, BLOCK_BYTES, 23)),
    ],
)
def test_an_impossible_frame_table_is_refused(table):
    with pytest.raises(DamageFound, match="frame table"):
        opened(forged(table, body=bytes(10)))


def test_a_pack_of_more_blocks_than_any_may_have_is_refused():
    frames_needed = PACK_MAX_BLOCKS // FRAME_BLOCKS
    table = table_of(*[(0, FRAME_BYTES, 1)] * frames_needed, (0, BLOCK_BYTES, 1))
    with pytest.raises(DamageFound, match="frame table"):
        opened(forged(table))


def test_a_table_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked():
    pack = forged(zstandard.compress(bytes(200_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DamageFound, match="frame table"):
            opened(pack)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ids", [b"", bytes(15), bytes(ID_BYTES * 2), bytes(24)])
def test_ids_that_are_not_one_for_each_block_are_refused(ids):
    pack = forged(table_of((10, BLOCK_BYTES, 1)), ids, body=bytes(10))
    with pytest.raises(DamageFound, match="ids"):
        opened(pack).ids(sealed_ids(pack))


def test_a_pack_without_frames_is_read_as_such():
    pack = forged(table_of())
    ids, ordinals = opened(pack).ids(sealed_ids(pack))
    assert len(ids) == len(ordinals) == 0


@settings(max_examples=150)
@given(st.binary(max_size=100), st.integers(1, 2))
def test_whatever_a_key_holder_seals_as_table_is_read_or_refused(table, kind):
    try:
        reader = opened(forged(zstandard.compress(table), body=bytes(50), kind=kind))
    except DamageFound:
        return
    assert int(reader.frames.offset.max(initial=0)) <= 50


def test_a_full_pack_of_partial_frames_stays_within_its_size():
    """The most tables that a pack can have: every frame a single block that shrinks to nothing."""
    builder = PackBuilder(SEALER, "data")
    payload, ids = bytes(450), os.urandom(ID_BYTES)
    while builder.has_room(len(payload), 1):
        builder.add(1, payload, BLOCK_BYTES, ids)
    pack = builder.finish()
    assert len(builder) in (PACK_MAX_BLOCKS, PACK_MAX_BLOCKS - 1) or len(pack.data) > 30 << 20
    assert len(pack.data) <= PACK_MAX_BYTES


def test_there_is_no_room_beyond_the_most_blocks_of_a_pack(monkeypatch):
    monkeypatch.setattr(pack_module, "PACK_MAX_BLOCKS", 40)
    builder = PackBuilder(SEALER, "data")
    builder.add(1, b"x", FRAME_BYTES, bytes(ID_BYTES * 32))
    assert builder.has_room(1, 8)
    assert not builder.has_room(1, 9)


@pytest.mark.parametrize(("kind", "most"), [("data", FRAME_BYTES), ("meta", 32 << 20)])
def test_a_frame_that_no_reader_would_take_is_not_written(kind, most):
    builder = PackBuilder(SEALER, kind)
    builder.add(1, b"x", most)
    with pytest.raises(RepositoryError, match="at most"):
        builder.add(1, b"x", most + 1)


def test_a_pack_is_finished_once():
    """Sealing its tables a second time would use their nonces a second time."""
    builder = PackBuilder(SEALER, "meta")
    builder.add(0, b"first", 5)
    builder.finish()
    for again in (builder.finish, lambda: builder.add(0, b"other", 5)):
        with pytest.raises(ValueError, match="finished"):
            again()


def test_the_padding_hides_the_exact_size_and_costs_at_most_a_64th():
    sizes = {len(meta_pack(os.urandom(3000 + n)).data) for n in range(0, 500, 50)}
    assert len(sizes) == 1
    for size in (1 << 20, 3 << 20, (1 << 25) - 1):
        assert pack_module._padding(size) <= size // 64
