"""Disk maps of any size say what was written, and share what did not change with the parent."""

import hashlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import LEAF_BYTES
from drvm.chunker.runs import ZERO, Leaf, encode_leaf
from drvm.core.errors import DamageFound
from drvm.repository.blobs import BlobWriter, NewBlob
from drvm.repository.diskmap import DiskMap, DiskMapWriter, levels, width
from drvm.repository.layout import FANOUT, pack_object
from drvm.repository.nodes import Child, Node, encode_node
from drvm.repository.packs import BlobRef, PackReader
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_pack import SEALER

DATA = [bytes([0xA0 + n]) * 32 for n in range(4)]
TALL = FANOUT * FANOUT


class Maps:
    """Disk maps in one store. A version of a leaf is a small number."""

    def __init__(self) -> None:
        self.store = FaultyStore()
        self.reader = PackReader(self.store, SEALER)
        self.written: list[bytes] = []

    def _emit(self, pack) -> None:
        self.written.append(pack.name)
        self.store.put(pack_object(pack.name), pack.data)

    def write(
        self,
        leaves: int,
        versions: dict[int, int],
        parent: DiskMap | None = None,
        kept: set[int] = frozenset(),
        banned: frozenset[bytes] = frozenset(),
        cut: int = 0,
    ) -> DiskMap:
        size = leaves * LEAF_BYTES - cut
        blobs = BlobWriter(SEALER, self._emit)
        writer = DiskMapWriter(blobs, size, parent, banned)
        for index, version in versions.items():
            writer.put(index, leaf(version), digest(index, version))
        for index in kept:
            writer.keep(index)
        root = writer.finish()
        blobs.finish()
        ref = blobs.ref(root) if isinstance(root, NewBlob) else root
        return DiskMap(self.reader.blob, ref, size)


def leaf(version: int) -> Leaf:
    packs = (DATA[version % 4],)
    return Leaf(packs, np.array([0], np.int64), np.array([version * 7], np.int64))


def digest(index: int, version: int) -> bytes:
    return hashlib.sha256(b"%d %d" % (index, version)).digest()[:16]


def needs(version: int) -> frozenset[bytes]:
    return frozenset([DATA[version % 4]])


def content(disk_map: DiskMap) -> dict[int, bytes]:
    found = {}
    for index in range(disk_map.leaves):
        child = disk_map.leaf_child(index)
        if child is not None:
            found[index] = child.digest
    return found


sizes = st.sampled_from([1, 2, FANOUT - 1, FANOUT, FANOUT + 1, FANOUT + 2, 2 * FANOUT, 300])


@st.composite
def histories(draw: st.DrawFn) -> Iterator[tuple[int, dict[int, int], set[int]]]:
    """Versions of a disk: (leaves, what is written, what is kept of what the parent has)."""
    steps, before = [], {}
    for version in range(draw(st.integers(1, 4))):
        leaves = draw(sizes)
        places = st.integers(0, leaves - 1)
        written = dict.fromkeys(sorted(draw(st.sets(places, max_size=6))), version)
        possible = sorted(index for index in before if index < leaves and index not in written)
        kept = set(possible)
        if possible and draw(st.booleans()):
            kept -= draw(st.sets(st.sampled_from(possible)))
        steps.append((leaves, written, kept))
        before = written | {index: before[index] for index in kept}
    return steps


@settings(deadline=None, max_examples=60)
@given(histories())
def test_any_history_of_sizes_and_changes_reads_as_the_model_says(steps):
    maps, parent, model = Maps(), None, {}
    for leaves, written, kept in steps:
        parent = maps.write(leaves, written, parent, kept)
        model = written | {index: model[index] for index in kept}
        assert content(parent) == {index: digest(index, v) for index, v in model.items()}
        below = {pack for version in model.values() for pack in needs(version)}
        assert below <= parent.packs() <= below | set(maps.written)


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 3 * TALL - 1), min_size=1, max_size=5), st.data())
def test_tall_trees_read_as_the_model_says_when_the_disk_grows_and_shrinks(places, data):
    maps = Maps()
    first = maps.write(3 * TALL, dict.fromkeys(places, 1))
    leaves = data.draw(st.sampled_from([max(places) + 1, 3 * TALL + 1, FANOUT * TALL + 1]))
    second = maps.write(leaves, {}, first, places)
    for index in places:
        assert second.leaf_child(index).digest == digest(index, 1)
        assert second.leaf_child(index + 1) is None or index + 1 in places
    assert second.packs() <= first.packs() | set(maps.written)


@pytest.mark.parametrize(
    "leaves", [0, 1, FANOUT - 1, FANOUT, FANOUT + 1, TALL, TALL + 1, FANOUT * TALL + 1]
)
def test_the_geometry_is_that_of_the_format(leaves):
    top = levels(leaves)
    assert width(leaves, top) == min(leaves, 1)
    assert FANOUT ** (top - 1) < max(leaves, 2)


def test_a_disk_without_bytes_has_no_map():
    assert Maps().write(0, {}).packs() == set()


def test_an_unchanged_disk_is_its_parents_root():
    maps = Maps()
    first = maps.write(300, {0: 1, 200: 1, 299: 1})
    before = list(maps.written)
    second = maps.write(300, {}, first, {0, 200, 299})
    assert second._root == first._root
    assert maps.written == before


def test_a_disk_that_grew_by_a_level_keeps_the_old_root_as_a_subtree():
    maps = Maps()
    last = FANOUT - 1
    first = maps.write(FANOUT, {0: 1, last: 1})
    second = maps.write(FANOUT + 1, {}, first, {0, last})
    assert second.child(1, 0).ref == first._root
    third = maps.write(FANOUT, {}, second, {0, last})
    assert third._root == first._root


def test_a_change_writes_only_the_path_to_it():
    maps = Maps()
    first = maps.write(3 * TALL, dict.fromkeys(range(0, 3 * TALL, 16), 1))
    blobs = BlobWriter(SEALER, maps._emit)
    writer = DiskMapWriter(blobs, 3 * TALL * LEAF_BYTES, first)
    for index in range(16, 3 * TALL, 16):
        writer.keep(index)
    writer.put(0, leaf(2), digest(0, 2))
    root = writer.finish()
    blobs.finish()
    assert blobs.ref(root).number == 3  # the leaf and a node of each of three levels


def test_a_parents_node_in_a_pack_that_must_not_be_relied_on_is_written_anew():
    maps = Maps()
    leaves = FANOUT + 1
    leaf_level = maps.write(leaves, {0: 1, FANOUT: 1})
    only_nodes = maps.write(leaves, {1: 2}, leaf_level, {0, FANOUT})
    banned = frozenset({only_nodes._root.pack})
    third = maps.write(leaves, {1: 3}, only_nodes, {0, FANOUT}, banned)
    assert not third.packs() & banned
    fourth = maps.write(leaves, {}, leaf_level, {0, FANOUT}, frozenset({leaf_level._root.pack}))
    assert fourth._root != leaf_level._root


def test_reading_a_leaf_of_a_tall_tree_costs_a_node_of_each_level():
    maps = Maps()
    disk_map = maps.write(3 * TALL, {5: 1, 2 * TALL: 1})
    fetched: list[BlobRef] = []
    watched = DiskMap(
        lambda ref: fetched.append(ref) or maps.reader.blob(ref), disk_map._root, 3 * TALL << 26
    )
    assert watched.leaf_child(5) is not None
    assert watched.leaf_child(6) is None
    assert len(fetched) == 3


def test_the_leaves_addresses_come_back_and_lies_about_their_packs_are_refused():
    maps = Maps()
    size = 100  # the only leaf has one block
    disk_map = maps.write(1, {0: 5}, cut=LEAF_BYTES - size)
    found = disk_map.leaf(0)
    assert (found.packs, found.pack.tolist(), found.ordinal.tolist()) == ((DATA[1],), [0], [35])
    for told in ((), tuple(DATA[:2])):  # of fewer, a collector would not keep what is missing
        blobs = BlobWriter(SEALER, maps._emit)
        stored = Child(blobs.add(encode_leaf(leaf(5)).data), digest(0, 5), told)
        root = blobs.add_node(partial(encode_node, Node(1, 1, {0: stored})))
        blobs.finish()
        lying = DiskMap(maps.reader.blob, blobs.ref(root), size)
        with pytest.raises(DamageFound, match="another number of packs"):
            lying.leaf(0)


def test_a_leaf_of_zeroes_only_is_read_as_such():
    maps = Maps()
    blobs = BlobWriter(SEALER, maps._emit)
    writer = DiskMapWriter(blobs, 4096, None)
    empty = Leaf((), np.array([ZERO], np.int64), np.array([0], np.int64))
    writer.put(0, empty, digest(0, 0))
    root = writer.finish()
    blobs.finish()
    assert DiskMap(maps.reader.blob, blobs.ref(root), 4096).leaf(0).pack.tolist() == [ZERO]


@pytest.mark.parametrize("leaves", [1, FANOUT - 1, FANOUT + 1, TALL])
def test_a_root_under_another_size_is_damage(leaves):
    maps = Maps()
    disk_map = maps.write(FANOUT, {0: 1})
    lying = DiskMap(maps.reader.blob, disk_map._root, leaves * LEAF_BYTES)
    with pytest.raises(DamageFound, match="elsewhere"):
        lying.leaf_child(0)


def test_a_root_of_a_disk_without_bytes_is_damage():
    maps = Maps()
    root = maps.write(1, {0: 1})._root
    with pytest.raises(DamageFound):
        DiskMap(maps.reader.blob, root, 0).packs()


def test_a_node_that_passes_for_its_own_child_is_damage():
    """A key holder's map whose root is also what the root refers to, at every place."""
    ref = BlobRef(bytes(32), 0)
    node = Node(2, FANOUT, {place: Child(ref) for place in range(FANOUT)})
    stored = encode_node(node, lambda _: None)
    lying = DiskMap(lambda _: stored, ref, TALL * LEAF_BYTES)
    with pytest.raises(DamageFound, match="elsewhere"):
        lying.leaf_child(0)


def test_the_packs_of_a_map_that_names_one_subtree_everywhere_are_found_at_once():
    """Else 4 PiB of lies in four blobs would keep a collector busy for hours."""
    pack, stored = b"\x07" * 32, {}
    for level in (1, 2, 3, 4):
        below = BlobRef(pack, level - 1)
        child = Child(below, bytes(16), tuple(DATA)) if level == 1 else Child(below)
        node = Node(level, FANOUT, dict.fromkeys(range(FANOUT), child))
        stored[level] = encode_node(node, lambda ref: ref.pack)
    fetched = []
    lying = DiskMap(
        lambda ref: fetched.append(ref) or stored[ref.number],
        BlobRef(pack, 4),
        TALL * TALL * LEAF_BYTES,
    )
    assert lying.packs() == {pack, *DATA}
    assert len(fetched) == 4
