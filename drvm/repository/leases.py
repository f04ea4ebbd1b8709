"""Leases: which machines are being backed up, and by whom, so that others don't begin as well.

They save work and nothing else: nothing is wrong without them, where two hold one at once, or where
somebody lies. A lease is an object under a random name; it says no more after ``VALID`` by the
store's own time, so no clock of any host matters, and who dies leaves nothing that must be removed.
Of several that hold, the one that the store has had longest goes first. docs/FORMAT.md, "Leases".
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from typing import Annotated

import msgspec

from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError, StoreError
from drvm.repository.crypto import Sealer
from drvm.repository.layout import decode_json, lease_object
from drvm.repository.points import create_once
from drvm.store.base import Store

VALID = dt.timedelta(minutes=15)
RENEW_S = 300.0
_MOST = 20


class Lease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``begun``: RFC 3339 by the clock of ``host``, for people."""

    host: Annotated[str, msgspec.Meta(max_length=255)]
    begun: Annotated[str, msgspec.Meta(max_length=40)]


class Leases:
    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer

    def take(self, vm_uuid: str, lease: Lease) -> str:
        """The name of a new one. A crash leaves it, until it says no more. Raises the store's
        errors."""
        name = lease_object(vm_uuid, secrets.token_hex(8))
        sealed = self._sealer.seal_object(b"lease", name, msgspec.json.encode(lease))
        create_once(self._store, name, sealed)
        return name

    def before(self, name: str, host: str = "") -> Lease | None:
        """Who was there before ``name``, which is one's own, and still is. What ``host`` left does
        not count: on one host locks say what is under way, and a lease may only be one that a
        killed drvm, or one whose store was away, could not take back. Raises the store's errors."""
        prefix = name.rpartition("/")[0] + "/"
        listed = {info.name: info.modified for info in self._store.list(prefix)}
        if name not in listed:
            return None
        mine = listed[name]
        earlier = sorted(
            (modified, other)
            for other, modified in listed.items()
            if (modified, other) < (mine, name) and mine - modified < VALID
        )
        for _, other in earlier[:_MOST]:
            with contextlib.suppress(ObjectMissing, ObjectDamaged, RepositoryError):
                plain = self._sealer.open_object(b"lease", other, self._store.get(other))
                lease = decode_json(plain, Lease, other)
                if lease.host != host:
                    return lease
        return None

    def end(self, name: str) -> None:
        """Where that can't be had, it ends by itself."""
        with contextlib.suppress(StoreError):
            self._store.delete(name)
