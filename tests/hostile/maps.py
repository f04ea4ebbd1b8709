"""Disk maps that lie: nodes and leaves, well sealed."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.case import Case, harmless, lost
from tests.hostile.forge import BLOCK, LEAF, Forge, leaf, node

ONE_LEAF = ((0, 0, 0, 0),)
ALL = (1 << 32) - 1


def of(
    *blobs: Callable[[bytes], bytes] | bytes, size: int = LEAF, root: int = -1
) -> Callable[[Forge], str]:
    """Blobs of one pack, the root last; functions get the name of a data pack of 32 blocks."""

    def plant(forge: Forge) -> str:
        data = forge.data(32)
        made = [blob(data) if callable(blob) else blob for blob in blobs]
        return forge.mapped(made, size, root)

    return plant


def above(data: bytes, **lies: int) -> bytes:
    """A root over the one leaf that is blob 0 of its pack."""
    return node(1, 1, {0: (1, 0)}, needs={data: 1}, **lies)


def of_leaf(content: bytes, packs: int = 1) -> Callable[[Forge], str]:
    """A map whose one leaf is this; the node above ascribes it that many packs."""

    def root(data: bytes) -> bytes:
        names = sorted([data, *(bytes([n + 1]) * 32 for n in range(packs - 1))][:packs])
        return node(1, 1, {0: (1, 0)}, needs=[(name, 1) for name in names])

    return of(content, root)


def of_node(content: Callable[[bytes], bytes] | bytes) -> Callable[[Forge], str]:
    return of(leaf(ONE_LEAF), content)


def quilt(levels: int, size: int) -> Callable[[Forge], str]:
    """Every node's 32 places are one and the same node: a disk as large as can be of a few
    blobs."""

    def plant(forge: Forge) -> str:
        data = forge.data(1)
        blobs = [leaf(ONE_LEAF)]
        blobs.append(node(1, 32, dict.fromkeys(range(32), (1, 0)), needs={data: ALL}))
        for level in range(2, levels + 1):
            places = 32 if level < levels else -(-size // (LEAF * 32 ** (level - 1)))
            blobs.append(node(level, places, dict.fromkeys(range(places), (1, level - 1))))
        return forge.mapped(blobs, size)

    return plant


def itself(forge: Forge) -> str:
    """A root of level 2 whose children are the root."""
    blob = node(2, 2, {0: (1, 0), 1: (1, 0)})
    return forge.mapped([blob], 33 * LEAF)


def each_other(forge: Forge) -> str:
    upper = node(3, 2, {0: (1, 1), 1: (1, 1)})
    lower = node(2, 32, dict.fromkeys(range(32), (1, 0)))
    return forge.mapped([upper, lower], 1025 * LEAF, root=0)


def from_data(forge: Forge) -> str:
    """A root that is a frame of a data pack."""
    name = forge.data(1).hex()
    return forge.point(disks=[forge.disk(LEAF, {"pack": name, "number": 0})])


def blocks_of_metadata(forge: Forge) -> str:
    """A leaf whose blocks lie in a metadata pack."""
    meta = forge.meta([b"m" * BLOCK])
    root = node(1, 1, {0: (1, 0)}, needs={meta: 1})
    return forge.mapped([leaf(ONE_LEAF), root])


def many_packs(forge: Forge) -> str:
    """A node that names as many packs as its leaf has blocks, none of which is there."""
    names = sorted(n.to_bytes(32, "big") for n in range(16384))
    runs = [(0, n, 0, 0) for n in range(16384)]
    root = node(1, 1, {0: (1, 0)}, needs=[(name, 1) for name in names])
    return forge.mapped([leaf(runs, [0] * 16384), root])


def too_many_packs(forge: Forge) -> str:
    names = sorted(n.to_bytes(32, "big") for n in range(16385))
    root = node(1, 1, {0: (1, 0)}, needs=[(name, 1) for name in names])
    return forge.mapped([leaf(ONE_LEAF), root])


def wide_names(forge: Forge) -> str:
    """A root with 65535 pack names that nothing refers to."""
    names = [n.to_bytes(32, "big") for n in range(65535)]
    data = forge.data(1)
    root = node(1, 1, {0: (1, 0)}, names=names, needs={data: 1})
    return forge.mapped([leaf(ONE_LEAF), root])


def empty_root(forge: Forge) -> str:
    return forge.mapped([node(1, 1, {})])


def largest_blob(forge: Forge) -> str:
    """A root of 32 MiB of noise that is as long as it may be."""
    return forge.mapped([bytes(32 << 20)])


def same_block(forge: Forge) -> str:
    """16384 runs of one and the same block."""
    data = forge.data(1)
    runs = [(0, 0, 0, 0), *[(0, 0, 0, 1)] * 16383]  # expected one further: -1 as zigzag is 1
    root = node(1, 1, {0: (1, 0)}, needs={data: 1})
    return forge.mapped([leaf(runs), root])


LEAVES: dict[str, tuple[bytes, int]] = {
    "an empty leaf": (b"", 1),
    "a leaf of seven bytes": (bytes(7), 1),
    "a leaf of noise": (b"\xff" * 1000, 1),
    "a leaf that claims all runs": (leaf(ONE_LEAF, runs=ALL), 1),
    "a leaf that claims all packs": (leaf(ONE_LEAF, packs=ALL), 1),
    "a leaf with more runs than blocks": (leaf([(0, 0, 0, 0)] * 16385), 1),
    "a leaf of another number of packs": (leaf([(0, 0, 0, 0), (0, 1, 0, 0)], (0, 0)), 1),
    "a leaf with more packs than runs": (leaf(ONE_LEAF, (0, 0)), 2),
    "a leaf with a pack without runs": (leaf([(0, 0, 0, 0)] * 2, (0, 0)), 2),
    "a leaf with a run of no pack": (leaf([(0, 7, 0, 0)]), 1),
    "a leaf with a run behind its end": (leaf([(16383, 0, 1, 0)]), 1),
    "a leaf with a gap over its end": (leaf([(65535, 0, 0, 0)]), 1),
    "a leaf whose runs add up over its end": (leaf([(0, 0, 16383, 0), (0, 0, 16383, 0)]), 1),
    "a leaf with gaps that overflow": (leaf([(65535, 0, 65535, 0)] * 16384), 1),
    "a leaf whose packs are placed twice": (leaf(ONE_LEAF, placed=2), 1),
    "a leaf with the ordinal of all bits": (leaf(ONE_LEAF, (ALL,)), 1),
    "a leaf with an ordinal over 31 bits": (leaf(ONE_LEAF, (1 << 31,)), 1),
    "a leaf with an ordinal that its run leaves": (leaf([(0, 0, 1, 0)], ((1 << 31) - 1,)), 1),
    "a leaf with a step below zero": (leaf([(0, 0, 0, 0), (0, 0, 0, ALL)]), 1),
    "a leaf with steps that overflow": (leaf([(0, 0, 0, ALL - 1)] * 1000), 1),
    "a leaf with a frame that is not there": (leaf(ONE_LEAF, (32,)), 1),
    "a leaf with a frame far away": (leaf(ONE_LEAF, ((1 << 31) - 1,)), 1),
    "a leaf with a byte more": (leaf(ONE_LEAF) + b"\0", 1),
    "a leaf with a byte less": (leaf(ONE_LEAF)[:-1], 1),
    "a leaf of another digest": (leaf(ONE_LEAF), 1),
    "a leaf of packs that are not there": (leaf([(0, n, 0, 0) for n in range(3)], (0, 0, 0)), 3),
    "a leaf of runs that overlap in the pack": (leaf([(0, 0, 9, 0), (0, 0, 9, 19)]), 1),
}

NODES: dict[str, Callable[[bytes], bytes] | bytes] = {
    "an empty node": b"",
    "a node of seven bytes": bytes(7),
    "a node of noise": b"\xff" * 1000,
    "a node of level 0": lambda data: above(data, level=0),
    "a node of level 255": lambda data: above(data, level=255),
    "a node of another level": lambda data: above(data, level=2),
    "a node of 256 places": lambda data: above(data, places=255),
    "a node with other places": lambda data: node(1, 2, {0: (1, 0)}, needs={data: 1}),
    "a node that claims all names": lambda data: above(data, tables=65535),
    "a node that claims all packs": lambda data: above(data, needed=ALL),
    "a node with an owner that it does not name": node(1, 1, {0: (2, 0)}),
    "a node with the last owner": node(1, 1, {0: (65535, 0)}),
    "a node whose child is not there": lambda data: node(1, 1, {0: (1, 99)}, needs={data: 1}),
    "a node with a child of all bits": lambda data: node(1, 1, {0: (1, ALL)}, needs={data: 1}),
    "a node whose child is itself": lambda data: node(1, 1, {0: (1, 1)}, needs={data: 1}),
    "a node whose child is of another pack": lambda data: node(
        1, 1, {0: (2, 0)}, names=[bytes(32)], needs={data: 1}
    ),
    "a node whose child is a data pack's": lambda data: node(
        1, 1, {0: (2, 0)}, names=[data], needs={data: 1}
    ),
    "a node with a bit for a place that is absent": lambda data: node(
        1, 1, {0: (1, 0)}, needs={data: 3}
    ),
    "a node with packs out of order": lambda data: node(
        1, 1, {0: (1, 0)}, needs=[(b"\xff" * 32, 1), (data, 1)]
    ),
    "a node with a pack twice": lambda data: node(1, 1, {0: (1, 0)}, needs=[(data, 1), (data, 1)]),
    "a node without the packs of its leaf": lambda data: node(1, 1, {0: (1, 0)}),
    "a node with more digests than children": lambda data: node(
        1, 1, {0: (1, 0)}, needs={data: 1}, digests=2
    ),
    "a node with a byte more": lambda data: above(data) + b"\0",
    "a node with a byte less": lambda data: above(data)[:-1],
}

CASES: dict[str, Case] = {
    **{name: lost(of_leaf(*content)) for name, content in LEAVES.items()},
    **{name: lost(of_node(content)) for name, content in NODES.items()},
    "a root that is its own child": lost(itself),
    "nodes that are each other's child": lost(each_other),
    "a root in a data pack": lost(from_data),
    "blocks in a metadata pack": lost(blocks_of_metadata),
    "a root of nothing": harmless(empty_root),
    "a root that is a leaf": lost(of(above, leaf(ONE_LEAF), root=1)),
    "a root for a larger disk": lost(of(leaf(ONE_LEAF), above, size=2 * LEAF)),
    "a root for a disk of 4 PiB": lost(of(leaf(ONE_LEAF), above, size=1 << 52)),
    "a root of 32 MiB": lost(largest_blob),
    "a leaf of 16384 packs": lost(many_packs),
    "a leaf of 16385 packs": lost(too_many_packs),
    "a node with 65535 names": lost(wide_names),
    "a leaf of one block": lost(same_block),
    "a quilt of 2 GiB": lost(quilt(1, 32 * LEAF)),
    "a quilt of 256 GiB": lost(quilt(3, 4096 * LEAF)),
    "a quilt of 4 PiB": Case(quilt(6, 1 << 52), "lost", forms=("folder",)),
}
