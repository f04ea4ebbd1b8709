"""Inner nodes of a disk map, as stored. docs/FORMAT.md, "Disk maps".

Level 1 nodes refer to up to 32 leaves and carry each leaf's digest, and the names of the packs
below them with a bitmap of the children that need each: so the collector reads level 1 nodes, not
leaves, a writer that replaces one child knows what the others need without reading them, and
leaves need no names. Higher nodes only refer to nodes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from drvm.chunker.blocks import LEAF_BLOCKS
from drvm.chunker.runs import PACK_NAME_BYTES
from drvm.repository.blobs import NewBlob
from drvm.repository.layout import FANOUT
from drvm.repository.packs import BlobRef

DIGEST_BYTES = 16

_HEADER = struct.Struct("<BBHI")
_ABSENT, _SELF = 0, 1
_BITMAP_BYTES = FANOUT // 8


@dataclass(frozen=True, slots=True)
class Child:
    """``digest``: of a leaf's ids, 16 bytes; empty for the child of a higher node.

    ``packs``: those that the leaf refers to, ascending; empty for higher nodes.
    """

    ref: BlobRef | NewBlob
    digest: bytes = b""
    packs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """``children``: by their place, 0 to ``count`` - 1; those that are missing are all zeroes."""

    level: int
    count: int
    children: Mapping[int, Child]


def encode_node(node: Node, name_of: Callable[[BlobRef | NewBlob], bytes | None]) -> bytes:
    """As stored. ``name_of`` gives the pack of a reference, ``None`` for the node's own."""
    places = sorted(node.children)
    owners = [name_of(node.children[place].ref) for place in places]
    table = sorted({owner for owner in owners if owner is not None})
    where: dict[bytes | None, int] = {name: at + 2 for at, name in enumerate(table)}
    where[None] = _SELF
    owner_column = np.zeros(node.count, dtype="<u2")
    number_column = np.zeros(node.count, dtype="<u4")
    for place, owner in zip(places, owners, strict=True):
        owner_column[place] = where[owner]
        number_column[place] = node.children[place].ref.number
    needs = _needs(node)
    return b"".join(
        (
            _HEADER.pack(node.level, node.count - 1, len(table), len(needs)),
            *table,
            owner_column.tobytes(),
            number_column.tobytes(),
            *(node.children[place].digest for place in places),
            *sorted(needs),
            *(needs[name].to_bytes(_BITMAP_BYTES, "little") for name in sorted(needs)),
        )
    )


def decode_node(data: bytes, own_pack: bytes, level: int, count: int) -> Node:
    """The inverse, for the node that belongs at this place. Raises ``ValueError`` otherwise."""
    if len(data) < _HEADER.size:
        raise ValueError("node is truncated")
    found_level, found_count, tables, needs = _HEADER.unpack_from(data)
    if (found_level, found_count + 1) != (level, count) or (level > 1 and needs):
        raise ValueError("node belongs elsewhere")
    at = _HEADER.size + tables * PACK_NAME_BYTES
    if len(data) < at + 6 * count:
        raise ValueError("node is truncated")
    owners = np.frombuffer(data, dtype="<u2", count=count, offset=at).tolist()
    numbers = np.frombuffer(data, dtype="<u4", count=count, offset=at + 2 * count).tolist()
    at += 6 * count
    places = [place for place in range(count) if owners[place] != _ABSENT]
    digests_bytes = len(places) * DIGEST_BYTES if level == 1 else 0
    if len(data) != at + digests_bytes + needs * (PACK_NAME_BYTES + _BITMAP_BYTES):
        raise ValueError("node has the wrong length")
    if max(owners) > tables + 1:
        raise ValueError("node refers to a pack that it does not name")
    digests = _split(data[at : at + digests_bytes], DIGEST_BYTES) or [b""] * len(places)
    child_packs = _child_packs(data[at + digests_bytes :], needs, len(places))
    if not child_packs.keys() <= set(places):
        raise ValueError("node says what a child needs that is not there")
    names = [b"", own_pack, *_split(data[_HEADER.size :][: tables * 32], PACK_NAME_BYTES)]
    children = {
        place: Child(
            BlobRef(names[owners[place]], numbers[place]),
            digest,
            tuple(child_packs.get(place, ())),
        )
        for place, digest in zip(places, digests, strict=True)
    }
    return Node(level, count, children)


def _needs(node: Node) -> dict[bytes, int]:
    needs: dict[bytes, int] = {}
    for place, child in node.children.items():
        for name in child.packs:
            needs[name] = needs.get(name, 0) | 1 << place
    return needs


def _child_packs(data: bytes, count: int, children: int) -> dict[int, list[bytes]]:
    at = count * PACK_NAME_BYTES
    if int.from_bytes(data[at:], "little").bit_count() > children * LEAF_BLOCKS:
        raise ValueError("node names more packs than the leaves below it have blocks")
    names, bitmaps = _split(data[:at], PACK_NAME_BYTES), _split(data[at:], _BITMAP_BYTES)
    if any(name >= following for name, following in pairwise(names)):
        raise ValueError("node does not name packs in their order")
    by_child: dict[int, list[bytes]] = {}
    for name, raw in zip(names, bitmaps, strict=True):
        bitmap = int.from_bytes(raw, "little")
        while bitmap:
            lowest = bitmap & -bitmap
            by_child.setdefault(lowest.bit_length() - 1, []).append(name)
            bitmap ^= lowest
    return by_child


def _split(data: bytes, width: int) -> list[bytes]:
    return [data[at : at + width] for at in range(0, len(data), width)]
