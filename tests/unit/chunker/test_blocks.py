"""Blocks: which are zero, and what they are called."""

import numpy as np
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, BlockHasher, block_count, leaf_count, nonzero_blocks

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
def test_an_id_is_the_keyed_hash_of_the_block_and_zero_for_zeroes(blocks):
    ids = BlockHasher(KEY, DIGEST_KEY).ids(b"".join(blocks))
    for row, block in zip(ids, blocks, strict=True):
        expected = blake3(block, key=KEY).digest(length=16) if any(block) else bytes(16)
        assert row.tobytes() == expected


def test_the_leaf_digest_depends_on_order_and_length():
    hasher = BlockHasher(KEY, DIGEST_KEY)
    ids = hasher.ids(b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES)
    digests = {hasher.leaf_digest(part) for part in (ids, ids[::-1].copy(), ids[:1], ids[:0])}
    assert len(digests) == 4


def test_the_last_block_and_leaf_count_although_they_are_not_whole():
    assert [block_count(n) for n in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert [leaf_count(n) for n in (0, 1, 64 << 20, (64 << 20) + 1)] == [0, 1, 1, 2]


def test_ids_of_nothing_are_an_empty_table():
    assert BlockHasher(KEY, DIGEST_KEY).ids(b"").shape == (0, 2)
    assert nonzero_blocks(b"").dtype == np.bool_
