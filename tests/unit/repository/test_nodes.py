"""Inner nodes come back as they went in; hostile ones are refused before they cost anything."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import LEAF_BLOCKS
from drvm.repository.blobs import NewBlob
from drvm.repository.layout import FANOUT
from drvm.repository.nodes import Child, Node, decode_node, encode_node
from drvm.repository.packs import BlobRef

OWN = b"\x01" * 32
NAMES = [bytes([n]) * 32 for n in range(2, 9)]

refs = st.builds(BlobRef, st.sampled_from([OWN, *NAMES]), st.integers(0, 2**32 - 1))


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    level, count = draw(st.integers(1, 4)), draw(st.integers(1, FANOUT))
    places = draw(st.sets(st.integers(0, count - 1), max_size=20))
    lowest = level == 1
    child = st.builds(
        Child,
        refs,
        st.binary(min_size=16, max_size=16) if lowest else st.just(b""),
        st.sets(st.sampled_from(NAMES)).map(lambda names: tuple(sorted(names)))
        if lowest
        else st.just(()),
    )
    return Node(level, count, {place: draw(child) for place in sorted(places)})


def name_of(ref: BlobRef | NewBlob) -> bytes | None:
    assert isinstance(ref, BlobRef)
    return None if ref.pack == OWN else ref.pack


@given(nodes())
def test_a_node_comes_back_as_it_went_in(node):
    assert decode_node(encode_node(node, name_of), OWN, node.level, node.count) == node


@given(nodes(), st.data())
def test_a_damaged_node_is_refused_or_stays_inside_its_bounds(node, data):
    stored = bytearray(encode_node(node, name_of))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_node(bytes(stored), OWN, node.level, node.count)
    except ValueError:
        return
    assert all(0 <= place < node.count for place in found.children)
    assert all(len(child.ref.pack) == 32 for child in found.children.values())


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(1, 2), st.integers(1, FANOUT))
def test_arbitrary_bytes_are_refused_or_stay_inside_their_bounds(data, level, count):
    try:
        node = decode_node(data, OWN, level, count)
    except ValueError:
        return
    assert set(node.children) <= set(range(count))


@given(nodes())
def test_a_node_is_refused_in_any_other_place(node):
    stored = encode_node(node, name_of)
    for level, count in ((node.level + 1, node.count), (node.level, node.count + 1)):
        with pytest.raises(ValueError, match="elsewhere"):
            decode_node(stored, OWN, level, count)


@given(nodes(), st.integers(1, 60))
def test_a_truncated_node_is_refused(node, cut):
    stored = encode_node(node, name_of)
    with pytest.raises(ValueError, match="node"):
        decode_node(stored[:-cut], OWN, node.level, node.count)


def test_a_bitmap_of_a_child_that_is_not_there_is_refused():
    node = Node(1, 3, {0: Child(BlobRef(OWN, 0), bytes(16), tuple(NAMES[:1]))})
    stored = encode_node(node, name_of)
    for place in (1, 2, 3, FANOUT - 1):
        wrong = stored[:-4] + (1 | 1 << place).to_bytes(4, "little")
        with pytest.raises(ValueError, match="child"):
            decode_node(wrong, OWN, 1, 3)


def test_more_packs_than_the_leaves_have_blocks_are_refused_before_they_are_listed():
    """A million names with full bitmaps would become 32 million entries."""
    needs = 2 * LEAF_BLOCKS
    stored = b"".join(
        (
            struct.pack("<BBHI", 1, FANOUT - 1, 0, needs),
            struct.pack(f"<{FANOUT}H", 1, *[0] * (FANOUT - 1)),
            bytes(4 * FANOUT),
            bytes(16),
            bytes(32 * needs),
            (1).to_bytes(4, "little") * needs,
        )
    )
    with pytest.raises(ValueError, match="more packs"):
        decode_node(stored, OWN, 1, FANOUT)


@pytest.mark.parametrize("names", [[1, 0], [0, 0]])
def test_names_that_do_not_ascend_are_refused(names):
    """A leaf names its packs by their places."""
    child = Child(BlobRef(OWN, 0), bytes(16), tuple(NAMES[:2]))
    stored = encode_node(Node(1, 1, {0: child}), name_of)
    wrong = stored[: -2 * 36] + b"".join(NAMES[n] for n in names) + stored[-2 * 4 :]
    with pytest.raises(ValueError, match="order"):
        decode_node(wrong, OWN, 1, 1)
