"""What was sealed opens only as itself, under its own name, and to no more than it may hold."""

import os
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository import crypto
from drvm.repository.crypto import MasterKeys, Sealer

KEYS = MasterKeys(bytes(range(32)), bytes(range(32, 64)))
ID = "00112233445566778899aabbccddeeff"
NAME = "final/0123456789abcdef.fedcba9876543210"


def sealer() -> Sealer:
    return Sealer(KEYS, ID)


def sealed_raw(packed: bytes) -> bytes:
    """An object whose sealed inside is exactly ``packed``: what a lying key holder can write."""
    salt = os.urandom(32)
    body = sealer().cipher(b"final", salt).seal(0, 0, packed, NAME.encode())
    return b"drvmseal" + struct.pack("<H", 0) + salt + body


@given(st.binary(max_size=300))
def test_an_object_comes_back_as_it_went_in(plain):
    stored = sealer().seal_object(b"final", NAME, plain)
    assert sealer().open_object(b"final", NAME, stored) == plain


def test_sealing_the_same_twice_gives_nothing_alike_but_the_magic():
    first, second = (sealer().seal_object(b"final", NAME, b"same") for _ in range(2))
    assert first[:10] == second[:10]
    assert first[10:42] != second[10:42]
    assert first[42:] != second[42:]


@given(st.data())
def test_every_flipped_bit_is_found(data):
    stored = bytearray(sealer().seal_object(b"final", NAME, b"what it says"))
    at = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[at // 8] ^= 1 << at % 8
    with pytest.raises((DamageFound, UnsupportedFormat)):
        sealer().open_object(b"final", NAME, bytes(stored))


@given(st.integers(0, 80))
def test_every_truncation_is_found(length):
    stored = sealer().seal_object(b"final", NAME, b"what it says")
    with pytest.raises(DamageFound):
        sealer().open_object(b"final", NAME, stored[: min(length, len(stored) - 1)])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_found(data):
    with pytest.raises((DamageFound, UnsupportedFormat)):
        sealer().open_object(b"final", NAME, data)


@pytest.mark.parametrize(
    ("purpose", "name", "repository", "keys"),
    [
        (b"point", NAME, ID, KEYS),
        (b"final", NAME[:-1] + "1", ID, KEYS),
        (b"final", NAME, "ff" * 16, KEYS),
        (b"final", NAME, ID, MasterKeys(bytes(32), KEYS.block_id)),
    ],
    ids=["another purpose", "another name", "another repository", "another key"],
)
def test_an_object_opens_only_where_it_belongs(purpose, name, repository, keys):
    stored = sealer().seal_object(b"final", NAME, b"what it says")
    with pytest.raises(DamageFound):
        Sealer(keys, repository).open_object(purpose, name, stored)


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_whatever_a_key_holder_seals_is_opened_or_refused(packed):
    try:
        plain = sealer().open_object(b"final", NAME, sealed_raw(packed))
    except DamageFound:
        return
    assert len(plain) == struct.unpack_from("<I", packed)[0]


def test_a_bomb_that_understates_its_length_is_refused_before_it_is_unpacked():
    bomb = struct.pack("<I", 100) + zstandard.compress(bytes(100_000_000), 9)
    tracemalloc.start()
    try:
        with pytest.raises(DamageFound):
            sealer().open_object(b"final", NAME, sealed_raw(bomb))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_length_that_nobody_needs_is_refused():
    with pytest.raises(DamageFound, match="claims"):
        sealer().open_object(b"final", NAME, sealed_raw(struct.pack("<I", (64 << 20) + 1)))


def test_an_object_that_no_reader_would_take_is_not_sealed(monkeypatch):
    monkeypatch.setattr(crypto, "MAX_OBJECT_BYTES", 100)
    with pytest.raises(RepositoryError, match="at most"):
        sealer().seal_object(b"final", NAME, bytes(101))


def test_a_piece_opens_only_at_its_own_place():
    cipher = sealer().cipher(b"pack-data", bytes(32))
    piece = cipher.seal(0, 5, b"frame")
    assert cipher.open(0, 5, piece) == b"frame"
    for domain, number in ((0, 4), (1, 5)):
        with pytest.raises(DamageFound):
            cipher.open(domain, number, piece)
    with pytest.raises(DamageFound):
        sealer().cipher(b"pack-data", bytes(31) + b"x").open(0, 5, piece)


def test_keys_are_not_printed():
    assert KEYS.seal.hex() not in repr(KEYS)
    assert repr(KEYS.seal) not in repr(KEYS)


def test_an_object_that_holds_less_than_it_claims_is_refused():
    packed = struct.pack("<I", 10) + zstandard.compress(b"nine byte")
    with pytest.raises(DamageFound, match="other than 10 bytes"):
        sealer().open_object(b"final", NAME, sealed_raw(packed))
