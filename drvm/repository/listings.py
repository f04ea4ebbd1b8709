"""Which packs are there, and which are condemned. Whoever needs both asks for the tombstones first:
docs/FORMAT.md, "Rules for a collector".
"""

from __future__ import annotations

from drvm.repository.layout import CONDEMNED, PACKS, pack_name
from drvm.store.base import ObjectInfo, Store


def condemned_packs(store: Store) -> frozenset[bytes]:
    return _names(store, CONDEMNED)


def present_packs(store: Store) -> frozenset[bytes]:
    return _names(store, PACKS)


def listed_packs(store: Store) -> dict[bytes, ObjectInfo]:
    """What the store says of each. ``present_packs`` takes less memory."""
    named = ((pack_name(info.name), info) for info in store.list(PACKS))
    return {name: info for name, info in named if name is not None}


def usable_packs(store: Store) -> frozenset[bytes]:
    """Those that are there, without those that a check found bad: its tombstones say so, and those
    of a collector are empty."""
    return present_packs(store) - _names(store, CONDEMNED, least_bytes=1)


def _names(store: Store, prefix: str, least_bytes: int = 0) -> frozenset[bytes]:
    """The packs that the objects below ``prefix`` are called after; others are not ours."""
    listed = (info for info in store.list(prefix) if info.size_bytes >= least_bytes)
    objects = (PACKS + info.name.removeprefix(prefix) for info in listed)
    return frozenset(name for name in map(pack_name, objects) if name is not None)
