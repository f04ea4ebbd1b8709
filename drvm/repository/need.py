"""Every pack that points need, for a collector: by the nodes of their disk maps.

Leaves are not read: what they need stands in the level-1 nodes above them (ADR 003). Subtrees that
points share are looked at once, so the work and the memory grow with what is stored, not with how
often it is named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from drvm.chunker.blocks import leaf_count
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import levels, width
from drvm.repository.layout import FANOUT
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.nodes import Child, Node, decode_node
from drvm.repository.packs import BlobRef, Fetch

Look = Callable[[Node], None]
"""Sees each level-1 node once."""


class Need:
    """``needed``: packs of all manifests added so far. ``unread``: packs in which a node could not
    be read, also not when it was fetched anew, and why; what lies below such a node is not in
    ``needed``. Safe for several threads; complete when all of them are done.

    ``fetch`` gets a blob, ``fetch_again`` gets it without any cache.
    """

    def __init__(self, fetch: Fetch, fetch_again: Fetch, look: Look = lambda node: None) -> None:
        self.needed: set[bytes] = set()
        self.unread: dict[bytes, str] = {}
        self._fetch = fetch
        self._fetch_again = fetch_again
        self._look = look
        self._seen: dict[bytes, set[int]] = {}
        self._lock = threading.Lock()

    def add(self, manifest: Manifest) -> None:
        """Raises the store's errors; damage is noted."""
        with self._lock:
            self.needed.update(blob.ref().pack for blob in manifest.blobs())
        for disk in manifest.streams:
            self._add_map(disk)

    def _add_map(self, disk: Disk) -> None:
        if disk.root is None:
            return
        leaves = leaf_count(disk.size_bytes)
        todo: list[tuple[BlobRef, int, int]] = [(disk.root.ref(), levels(leaves), 0)]
        while todo:
            ref, level, index = todo.pop()
            if not self._first(ref):
                continue
            count = min(FANOUT, width(leaves, level - 1) - index * FANOUT)
            node = self._node(ref, level, count)
            if node is None:
                continue
            with self._lock:
                for child in node.children.values():
                    self.needed.add(_stored(child).pack)
                    self.needed.update(child.packs)
            if level == 1:
                self._look(node)
                continue
            for place, child in node.children.items():
                todo.append((_stored(child), level - 1, index * FANOUT + place))

    def _first(self, ref: BlobRef) -> bool:
        """Whether nobody looked at this node yet. A node is the same wherever it is named: as
        anything else than what it says it is, no reader takes it."""
        with self._lock:
            self.needed.add(ref.pack)
            seen = self._seen.setdefault(ref.pack, set())
            if ref.number in seen:
                return False
            seen.add(ref.number)
            return True

    def _node(self, ref: BlobRef, level: int, count: int) -> Node | None:
        """``None`` for one that can't be read. It is looked at anew wherever else it is named."""
        problem = ""
        for fetch in (self._fetch, self._fetch_again):
            try:
                return decode_node(fetch(ref), ref.pack, level, count)
            except DamageFound as error:
                problem = str(error)
            except ValueError as error:
                problem = f"a disk map is damaged: {error}"
        with self._lock:
            self.unread[ref.pack] = problem
            self._seen[ref.pack].discard(ref.number)
        return None


def _stored(child: Child) -> BlobRef:
    assert isinstance(child.ref, BlobRef)
    return child.ref
