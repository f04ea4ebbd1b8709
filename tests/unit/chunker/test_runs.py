"""Leaves come back as they went in, compactly, and hostile ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.runs import MAX_ORDINAL, ZERO, EncodedLeaf, Leaf, decode_leaf, encode_leaf

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


def decoded(leaf: EncodedLeaf, blocks: int) -> Leaf:
    return decode_leaf(leaf.data, leaf.packs, blocks)


@given(blocks)
def test_a_leaf_comes_back_as_it_went_in(entries):
    leaf = leaf_of(entries)
    assert addresses(decoded(encode_leaf(leaf), len(entries))) == addresses(leaf)


def test_what_was_written_in_the_disks_order_and_then_changed_here_and_there_has_no_steps():
    """Of the old pack's runs the place tells the ordinal, of the new one's the run before."""
    entries = [(0, 1000 + n) for n in range(1000)]
    for number, place in enumerate(range(3, 1000, 7)):
        entries[place] = (1, 50 + number)
    encoded = encode_leaf(leaf_of(entries))
    assert encoded.columns[1] == bytes([1, 0])
    assert not any(b"".join(encoded.columns[-4:]))
    assert addresses(decoded(encoded, 1000)) == addresses(leaf_of(entries))


def test_the_largest_ordinals_come_back_in_any_order():
    entries = [(0, MAX_ORDINAL), (0, 0), (1, 5), (0, MAX_ORDINAL - 1), (0, MAX_ORDINAL)]
    assert addresses(decoded(encode_leaf(leaf_of(entries)), 5)) == addresses(leaf_of(entries))


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


def test_a_pack_that_the_table_names_twice_is_one():
    """As where a session's pack was found by the index when it was finished."""
    entries = [(0, 5), (1, 6), (0, 7)]
    twice = leaf_of(entries, (NAMES[3], NAMES[3]))
    assert encode_leaf(twice) == encode_leaf(leaf_of([(3, 5), (3, 6), (3, 7)]))


def test_a_sequentially_written_leaf_is_one_run():
    leaf = leaf_of([(2, n) for n in range(16384)])
    encoded = encode_leaf(leaf)
    assert (len(encoded.data), encoded.packs) == (8 + 5 + 10, NAMES[2:3])


def test_an_empty_leaf_is_only_a_header():
    assert encode_leaf(leaf_of([(ZERO, 0)] * 100)).data == bytes(8)


@given(blocks, st.data())
def test_a_damaged_leaf_is_refused_or_stays_inside_its_bounds(entries, data):
    encoded = encode_leaf(leaf_of(entries))
    stored = bytearray(encoded.data)
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    try:
        leaf = decode_leaf(bytes(stored), encoded.packs, len(entries))
    except ValueError:
        return
    assert len(leaf.pack) == len(leaf.ordinal) == len(entries)
    assert leaf.pack.max(initial=ZERO) < len(leaf.packs)
    assert 0 <= leaf.ordinal.min(initial=0) <= leaf.ordinal.max(initial=0) <= MAX_ORDINAL


@given(st.binary(max_size=300), st.integers(0, 5))
def test_arbitrary_bytes_are_refused_or_stay_inside_their_bounds(data, packs):
    try:
        leaf = decode_leaf(data, NAMES[:packs], 64)
    except ValueError:
        return
    assert len(leaf.pack) == 64


@pytest.mark.parametrize("cut", [1, 8, 9, 20])
def test_a_truncated_leaf_is_refused(cut):
    encoded = encode_leaf(leaf_of([(0, 5), (1, 7)]))
    with pytest.raises(ValueError, match="leaf"):
        decode_leaf(encoded.data[:-cut], encoded.packs, 2)


@pytest.mark.parametrize("packs", [NAMES[:1], NAMES[:3]])
def test_a_leaf_is_refused_where_it_needs_another_number_of_packs(packs):
    with pytest.raises(ValueError, match="another number"):
        decode_leaf(encode_leaf(leaf_of([(0, 5), (1, 7)])).data, packs, 2)


def test_a_pack_without_a_run_is_refused():
    """Else a leaf could keep packs that no block of it needs."""
    stored = bytearray(encode_leaf(leaf_of([(0, 5), (1, 7)])).data)
    assert stored[8 + 10 + 4 + 1] == 1  # the second run's pack
    stored[8 + 10 + 4 + 1] = 0
    with pytest.raises(ValueError, match="no run"):
        decode_leaf(bytes(stored), NAMES[:2], 2)
