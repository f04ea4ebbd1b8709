"""Disk maps: which block of a disk is stored where, as a tree of immutable nodes.

Leaves cover 64 MiB; inner nodes have up to 32 children. Subtrees that did not change are
shared with the parent point by reference, so an incremental of a 10 TiB disk writes only what
it touched; and yet every map names the whole disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from drvm.chunker.blocks import LEAF_BLOCKS, block_count, leaf_count
from drvm.chunker.runs import Leaf, decode_leaf, encode_leaf
from drvm.core.errors import DamageFound
from drvm.repository.blobs import BlobWriter, NewBlob
from drvm.repository.layout import FANOUT
from drvm.repository.nodes import Child, Node, decode_node, encode_node
from drvm.repository.packs import BlobRef, Fetch

_NODES_KEPT = 16
"""Disks are read and written in order; an aged node's pack sets take megabytes."""


def levels(leaves: int) -> int:
    """The height of the tree over so many leaves; at least 1, so that pack sets always exist."""
    height, reach = 1, FANOUT
    while reach < leaves:
        height, reach = height + 1, reach * FANOUT
    return height


def width(leaves: int, level: int) -> int:
    """How many nodes a level has; level 0 are the leaves."""
    reach: int = FANOUT**level
    return -(-leaves // reach)


class DiskMap:
    """Reads a disk map. Not safe for several threads at once.

    Nodes are fetched as they are needed and a few are kept. Raises ``DamageFound`` for whatever
    a writer can't have written.
    """

    def __init__(self, fetch: Fetch, root: BlobRef | None, size_bytes: int) -> None:
        self._fetch = fetch
        self._root = root
        self.size_bytes = size_bytes
        self.leaves = leaf_count(size_bytes)
        self._nodes: OrderedDict[tuple[BlobRef, int, int], Node] = OrderedDict()

    def child(self, level: int, index: int) -> Child | None:
        """What refers to node ``index`` of ``level``; ``None`` where everything is zero."""
        top = levels(self.leaves)
        if level >= top:
            at_root = level == top and index == 0 and self._root is not None
            return Child(self._root) if at_root and self._root is not None else None
        above = self.child(level + 1, index // FANOUT)
        if above is None:
            return None
        return self._node(above, level + 1, index // FANOUT).children.get(index % FANOUT)

    def same_node(self, node: Node, index: int) -> Child | None:
        """The reference to the node at this place, if it says the same as ``node``."""
        child = self.child(node.level, index)
        if child is None or self._node(child, node.level, index) != node:
            return None
        return child

    def leaf_child(self, index: int) -> Child | None:
        return self.child(0, index) if 0 <= index < self.leaves else None

    def leaf_digest(self, index: int) -> bytes:
        """Empty where all of its blocks are zero."""
        child = self.leaf_child(index)
        return b"" if child is None else child.digest

    def leaf(self, index: int) -> Leaf | None:
        """The addresses of a leaf's blocks; ``None`` where all are zero."""
        child = self.leaf_child(index)
        return None if child is None else self.leaf_of(child, index)

    def leaf_of(self, child: Child, index: int) -> Leaf:
        """The same where the reference to it is at hand; for several threads at once."""
        assert isinstance(child.ref, BlobRef)
        try:
            return decode_leaf(self._fetch(child.ref), child.packs, self.leaf_blocks(index))
        except ValueError as error:
            raise DamageFound(f"a disk map is damaged: {error}") from None

    def leaf_blocks(self, index: int) -> int:
        return min(LEAF_BLOCKS, block_count(self.size_bytes) - index * LEAF_BLOCKS)

    def mapped_leaves(self) -> Iterator[int]:
        """Those that are not zeroes throughout, in their order. Zeroes cost nothing, however many
        they are."""
        top = levels(self.leaves)
        root = self.child(top, 0) if self.leaves else None
        if root is not None:
            yield from self._mapped(root, top, 0)

    def _mapped(self, child: Child, level: int, index: int) -> Iterator[int]:
        if level == 0:
            yield index
            return
        for place, below in sorted(self._node(child, level, index).children.items()):
            yield from self._mapped(below, level - 1, index * FANOUT + place)

    def packs(self) -> set[bytes]:
        """Every pack the map needs: of the blocks, and of its own nodes and leaves."""
        found: set[bytes] = set()
        root = self.child(levels(self.leaves), 0)
        if root is not None:
            self._collect(root, levels(self.leaves), 0, found, set())
        return found

    def _collect(
        self, child: Child, level: int, index: int, found: set[bytes], seen: set[BlobRef]
    ) -> None:
        """Leaves are not read: their packs stand in the nodes above them. A node is looked at
        once, also where a hostile map names it in many places."""
        assert isinstance(child.ref, BlobRef)
        found.add(child.ref.pack)
        found.update(child.packs)
        if level > 0 and child.ref not in seen:
            seen.add(child.ref)
            for place, below in self._node(child, level, index).children.items():
                self._collect(below, level - 1, index * FANOUT + place, found, seen)

    def fold(self, value: Callable[[bytes], int], known: dict[BlobRef, int]) -> int:
        """The bits that ``value`` has for any of the packs that the map needs. ``known``: of nodes
        that were looked at before, also in other maps."""
        root = self.child(levels(self.leaves), 0)
        return 0 if root is None else self._fold(root, levels(self.leaves), 0, value, known)

    def _fold(
        self,
        child: Child,
        level: int,
        index: int,
        value: Callable[[bytes], int],
        known: dict[BlobRef, int],
    ) -> int:
        ref = child.ref
        assert isinstance(ref, BlobRef)
        bits = value(ref.pack)
        for name in child.packs:
            bits |= value(name)
        if level == 0:
            return bits
        if ref not in known:
            below = 0
            for place, one in self._node(child, level, index).children.items():
                below |= self._fold(one, level - 1, index * FANOUT + place, value, known)
            known[ref] = below
        return bits | known[ref]

    def _node(self, child: Child, level: int, index: int) -> Node:
        ref = child.ref
        assert isinstance(ref, BlobRef)
        count = min(FANOUT, width(self.leaves, level - 1) - index * FANOUT)
        key = (ref, level, count)
        if key in self._nodes:
            self._nodes.move_to_end(key)
            return self._nodes[key]
        try:
            node = decode_node(self._fetch(ref), ref.pack, level, count)
        except ValueError as error:
            raise DamageFound(f"a disk map is damaged: {error}") from None
        self._nodes[key] = node
        while len(self._nodes) > _NODES_KEPT:
            self._nodes.popitem(last=False)
        return node


def relies_on(child: Child, packs: frozenset[bytes]) -> bool:
    """Whether the child itself, or a block below it, lies in one of ``packs``."""
    return isinstance(child.ref, BlobRef) and (
        child.ref.pack in packs or not packs.isdisjoint(child.packs)
    )


class DiskMapWriter:
    """Builds the map of one disk from its leaves, in any order, sharing with the parent's what
    does not lie in ``banned`` packs."""

    def __init__(
        self,
        blobs: BlobWriter,
        size_bytes: int,
        parent: DiskMap | None,
        banned: frozenset[bytes] = frozenset(),
    ) -> None:
        self._banned = banned
        self._blobs = blobs
        self._leaves = leaf_count(size_bytes)
        self._parent = parent
        self._open: dict[int, dict[int, Child | None]] = {}  # level 1: leaves by place, None kept
        self._nodes: dict[int, Child] = {}  # level 1, written

    def keep(self, index: int) -> None:
        """The leaf is as in the parent, which must have one of the same number of blocks."""
        self._open.setdefault(index // FANOUT, {})[index % FANOUT] = None

    def put(self, index: int, leaf: Leaf, digest: bytes) -> None:
        """Leaves never mentioned are all zeroes."""
        encoded = encode_leaf(leaf)
        child = Child(self._blobs.add(*encoded.columns), digest, encoded.packs)
        self._open.setdefault(index // FANOUT, {})[index % FANOUT] = child

    def settled(self, below: int) -> None:
        """No leaf before this one will be mentioned any more: write the nodes above them, so that
        a disk of any size takes little memory."""
        for index in sorted(index for index in self._open if (index + 1) * FANOUT <= below):
            leaves = self._open.pop(index)
            self._nodes[index] = self._node(
                1, index, {place: self._leaf(index, place, leaves[place]) for place in leaves}
            )

    def finish(self) -> BlobRef | NewBlob | None:
        """The root; ``None`` for a disk of zeroes."""
        self.settled(width(self._leaves, 1) * FANOUT)
        nodes = self._nodes
        for level in range(2, levels(self._leaves) + 1):
            above: dict[int, dict[int, Child]] = {}
            for index, child in nodes.items():
                above.setdefault(index // FANOUT, {})[index % FANOUT] = child
            nodes = {index: self._node(level, index, above[index]) for index in sorted(above)}
        return nodes[0].ref if nodes else None

    def _leaf(self, node: int, place: int, written: Child | None) -> Child:
        if written is not None:
            return written
        index = node * FANOUT + place
        child = self._parent.leaf_child(index) if self._parent is not None else None
        assert child is not None, "a leaf was kept that the parent does not have"
        return child

    def _node(self, level: int, index: int, children: dict[int, Child]) -> Child:
        count = width(self._leaves, level - 1) - index * FANOUT
        ordered = {place: children[place] for place in sorted(children)}
        node = Node(level, min(FANOUT, count), ordered)
        return self._shared(node, index) or Child(self._add(node))

    def _shared(self, node: Node, index: int) -> Child | None:
        """The parent's node, if it says the same."""
        if self._parent is None or any(
            isinstance(child.ref, NewBlob) for child in node.children.values()
        ):
            return None
        child = self._parent.same_node(node, index)
        return None if child is None or relies_on(child, self._banned) else child

    def _add(self, node: Node) -> NewBlob:
        return self._blobs.add_node(lambda name_of: encode_node(node, name_of))
