"""Leaves come back as they went in, compactly, and hostile ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.runs import MAX_ORDINAL, ZERO, Leaf, columns, decode_leaf, encode_leaf

NAMES = tuple(bytes([n]) * 32 for n in range(5))

blocks = st.lists(
    st.one_of(
        st.tuples(st.just(ZERO), st.just(0)),
        st.tuples(st.integers(0, 4), st.integers(0, 40)),
        st.tuples(st.integers(0, 4), st.integers(0, MAX_ORDINAL)),
    ),
    max_size=200,
)


def leaf_of(entries: list[tuple[int, int]], packs: tuple[bytes, ...] = NAMES) -> Leaf:
    table = np.array(entries, dtype=np.int64).reshape(-1, 2)
    return Leaf(packs, table[:, 0].copy(), table[:, 1].copy())


def addresses(leaf: Leaf) -> list[tuple[bytes | None, int]]:
    return [
        (None if pack == ZERO else leaf.packs[pack], ordinal)
        for pack, ordinal in zip(leaf.pack.tolist(), leaf.ordinal.tolist(), strict=True)
    ]


@given(blocks)
def test_a_leaf_comes_back_as_it_went_in(entries):
    leaf = leaf_of(entries)
    assert addresses(decode_leaf(encode_leaf(leaf), len(entries))) == addresses(leaf)


@pytest.mark.parametrize("runs", [0, 255, 256, 1000])
def test_the_planes_of_a_leaf_of_many_runs_are_told(runs):
    encoded = encode_leaf(leaf_of([(n % 5, 7 * n) for n in range(runs)]))
    planes = columns(encoded)
    assert len(planes) == (10 if runs >= 256 else 0)
    assert not planes or planes[-1] + runs == len(encoded)


def test_the_largest_ordinals_come_back_in_any_order():
    entries = [(0, MAX_ORDINAL), (0, 0), (1, 5), (0, MAX_ORDINAL - 1), (0, MAX_ORDINAL)]
    assert addresses(decode_leaf(encode_leaf(leaf_of(entries)), 5)) == addresses(leaf_of(entries))


@pytest.mark.parametrize("ordinal", [-1, MAX_ORDINAL + 1])
def test_an_ordinal_that_the_columns_cannot_hold_is_refused_not_wrapped(ordinal):
    with pytest.raises(ValueError, match="ordinal"):
        encode_leaf(leaf_of([(0, ordinal), (0, 7)]))


@given(blocks, st.permutations(range(5)))
def test_equal_leaves_have_equal_bytes_whatever_the_order_of_their_pack_table(entries, order):
    renamed = [(order[pack] if pack != ZERO else ZERO, ordinal) for pack, ordinal in entries]
    packs = [b""] * 5
    for old, new in enumerate(order):
        packs[new] = NAMES[old]
    assert encode_leaf(leaf_of(renamed, tuple(packs))) == encode_leaf(leaf_of(entries))


def test_a_sequentially_written_leaf_is_one_run():
    leaf = leaf_of([(2, n) for n in range(16384)])
    assert len(encode_leaf(leaf)) == 8 + 32 + 10


def test_an_empty_leaf_is_only_a_header():
    assert encode_leaf(leaf_of([(ZERO, 0)] * 100)) == bytes(8)


@given(blocks, st.data())
def test_a_damaged_leaf_is_refused_or_stays_inside_its_bounds(entries, data):
    stored = bytearray(encode_leaf(leaf_of(entries)))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    try:
        leaf = decode_leaf(bytes(stored), len(entries))
    except ValueError:
        return
    assert len(leaf.pack) == len(leaf.ordinal) == len(entries)
    assert leaf.pack.max(initial=ZERO) < len(leaf.packs)
    assert leaf.ordinal.min(initial=0) >= 0


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_stay_inside_their_bounds(data):
    try:
        leaf = decode_leaf(data, 64)
    except ValueError:
        return
    assert len(leaf.pack) == 64


@pytest.mark.parametrize("cut", [1, 8, 9, 20])
def test_a_truncated_leaf_is_refused(cut):
    stored = encode_leaf(leaf_of([(0, 5), (1, 7)]))
    with pytest.raises(ValueError, match="leaf"):
        decode_leaf(stored[:-cut], 2)
