"""The records of drills: what they say is the drill's own (``drvm/drill``)."""

from __future__ import annotations

import contextlib
import datetime as dt

from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError
from drvm.repository.crypto import Sealer
from drvm.repository.layout import DRILLS, drill_object
from drvm.repository.points import create_once
from drvm.store.base import Store


class Drills:
    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer

    def put(self, vm_uuid: str, drill_id: str, record: bytes) -> None:
        name = drill_object(vm_uuid, drill_id)
        create_once(self._store, name, self._sealer.seal_object(b"drill", name, record))

    def times(self) -> dict[str, dt.datetime]:
        """VM's UUID -> when its last record came, by the store's time. Reads none of them."""
        found: dict[str, dt.datetime] = {}
        for info in self._store.list(DRILLS):
            vm_uuid = info.name.removeprefix(DRILLS).partition("/")[0]
            found[vm_uuid] = max(info.modified, found.get(vm_uuid, info.modified))
        return found

    def records(self) -> list[bytes]:
        """All; one that is damaged or goes away meanwhile is left out."""
        found = []
        for name in [info.name for info in self._store.list(DRILLS)]:
            with contextlib.suppress(ObjectDamaged, ObjectMissing, RepositoryError):
                found.append(self._sealer.open_object(b"drill", name, self._store.get(name)))
        return found
