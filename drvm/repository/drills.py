"""The records of drills: what they say is the drill's own (``drvm/drill``)."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path

from drvm.core.errors import RepositoryError
from drvm.core.files import write_cached
from drvm.repository.crypto import Sealer
from drvm.repository.layout import DRILLS, drill_object, parse_drill
from drvm.repository.points import create_once
from drvm.store.base import MAX_OBJECT_BYTES, ObjectInfo, Store


class Drills:
    """``directory``: where this host keeps records that it has read, as the store has them: sealed,
    so they are private, and one that is torn or somebody else's does not open. What the store does
    not list any more is not looked for there."""

    def __init__(self, store: Store, sealer: Sealer, directory: Path | None = None) -> None:
        self._store = store
        self._sealer = sealer
        self._directory = directory

    def put(self, vm_uuid: str, drill_id: str, record: bytes) -> None:
        name = drill_object(vm_uuid, drill_id)
        create_once(self._store, name, self._sealer.seal_object(b"drill", name, record))

    def times(self, until: dt.datetime) -> dict[str, dt.datetime]:
        """VM's UUID -> when its last record came, by the store's time; one that is dated later than
        ``until`` is of a wrong clock, and hides none. Reads none of them."""
        found: dict[str, dt.datetime] = {}
        for info in self._store.list(DRILLS):
            if info.modified <= until:
                vm_uuid = info.name.removeprefix(DRILLS).partition("/")[0]
                found[vm_uuid] = max(info.modified, found.get(vm_uuid, info.modified))
        return found

    def listed(self) -> list[ObjectInfo]:
        """All records, whoever wrote them; names that are none of drvm's are left out."""
        return [
            info
            for info in self._store.list(DRILLS)
            if parse_drill(info.name) is not None and info.size_bytes <= MAX_OBJECT_BYTES
        ]

    def read(self, info: ObjectInfo) -> bytes:
        """The record that was listed so. Raises ``ObjectMissing``, ``ObjectDamaged`` and
        ``DamageFound``."""
        kept = self._kept(info)
        if kept is not None:
            with contextlib.suppress(RepositoryError):
                return self._sealer.open_object(b"drill", info.name, kept)
        sealed = self._store.get(info.name)
        record = self._sealer.open_object(b"drill", info.name, sealed)
        self._keep(info, sealed)
        return record

    def _path(self, info: ObjectInfo) -> Path | None:
        parsed = parse_drill(info.name)
        if self._directory is None or parsed is None:
            return None
        return self._directory / parsed[0] / parsed[1]

    def _kept(self, info: ObjectInfo) -> bytes | None:
        path = self._path(info)
        if path is None:
            return None
        try:
            data = path.read_bytes() if path.stat().st_size == info.size_bytes else None
        except OSError:
            return None
        return data

    def _keep(self, info: ObjectInfo, sealed: bytes) -> None:
        path = self._path(info)
        if path is not None:
            with contextlib.suppress(OSError):  # it is only faster the next time
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_cached(path, sealed)
