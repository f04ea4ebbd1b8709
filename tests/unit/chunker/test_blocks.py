"""Blocks: which are zero, and what they are called."""

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, BlockHasher, block_count, leaf_count, zero_ids
from drvm.chunker.kernel import NEW, SAME, ZERO, nonzero_blocks

KEY, DIGEST_KEY = b"k" * 32, b"d" * 32

contents = st.lists(
    st.one_of(
        st.just(bytes(BLOCK_BYTES)),
        st.tuples(st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255)).map(
            lambda spot: bytes(spot[0]) + bytes([spot[1]]) + bytes(BLOCK_BYTES - 1 - spot[0])
        ),
    ),
    max_size=8,
)


@given(contents)
def test_a_block_is_zero_only_if_every_byte_is(blocks):
    assert nonzero_blocks(b"".join(blocks)).tolist() == [any(block) for block in blocks]


@given(contents)
def test_an_id_is_the_keyed_hash_of_the_block_and_zero_for_zeroes(kernel, blocks):
    ids = BlockHasher(KEY, DIGEST_KEY, kernel).ids(b"".join(blocks))
    for row, block in zip(ids, blocks, strict=True):
        expected = blake3(block, key=KEY).digest(length=16) if any(block) else bytes(16)
        assert row.tobytes() == expected


def test_a_scan_says_which_blocks_differ_from_the_known_ones(kernel):
    hasher = BlockHasher(KEY, DIGEST_KEY, kernel)
    before = hasher.ids(b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES + bytes(BLOCK_BYTES))
    scan = hasher.scan(b"a" * BLOCK_BYTES + b"c" * BLOCK_BYTES + bytes(BLOCK_BYTES), before)
    assert scan.state.tolist() == [SAME, NEW, ZERO]
    assert scan.new_blocks == 1
    assert (scan.ids == before).all(axis=1).tolist() == [True, False, True]


def test_known_ids_may_be_part_of_a_larger_table(kernel):
    hasher = BlockHasher(KEY, DIGEST_KEY, kernel)
    data = b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
    table = np.repeat(hasher.ids(data), 2, axis=0)[::2]
    assert hasher.scan(data, table).state.tolist() == [SAME, SAME]


@pytest.mark.parametrize("known", [0, 1, 3])
def test_as_many_known_ids_as_blocks_are_needed(kernel, known):
    with pytest.raises(ValueError):
        BlockHasher(KEY, DIGEST_KEY, kernel).scan(bytes(2 * BLOCK_BYTES), zero_ids(known))


def test_the_leaf_digest_depends_on_order_and_length():
    hasher = BlockHasher(KEY, DIGEST_KEY)
    ids = hasher.ids(b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES)
    digests = {hasher.leaf_digest(part) for part in (ids, ids[::-1].copy(), ids[:1], ids[:0])}
    assert len(digests) == 4


def test_the_last_block_and_leaf_count_although_they_are_not_whole():
    assert [block_count(n) for n in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert [leaf_count(n) for n in (0, 1, 64 << 20, (64 << 20) + 1)] == [0, 1, 1, 2]


def test_ids_of_nothing_are_an_empty_table(kernel):
    assert BlockHasher(KEY, DIGEST_KEY, kernel).ids(b"").shape == (0, 2)
    assert nonzero_blocks(b"").dtype == np.bool_
