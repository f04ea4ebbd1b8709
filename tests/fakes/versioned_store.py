"""A bucket in memory that keeps versions, delete markers and locks, as S3 does."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import ObjectExists, ObjectMissing, StoreRefused
from drvm.store import base
from drvm.store.history import LockMode, LockRule, Version, Versioning


@dataclass
class Kept:
    version: Version
    data: bytes
    until: dt.datetime | None = None


class VersionedMemory:
    """Keeps the contract of ``VersionedStore``; ``may_delete`` is about deleting by version."""

    def __init__(self, clock: Clock | None = None, lock: LockRule | None = None) -> None:
        self.kept: dict[str, list[Kept]] = {}
        self.clock = clock or SystemClock()
        self.lock = lock
        self.may_delete = True
        self.history = MemoryHistory(self)
        self.trials = MemoryTrials()
        self.location = "memory:"

    def get(
        self, name: str, *, offset: int = 0, length: int | None = None, version: str | None = None
    ) -> bytes:
        base.check_range(offset, length)
        data = self.find(name, version).data
        end = len(data) if length is None else offset + length
        if offset > len(data) or end > len(data):
            raise base.past_the_end(name, offset, length, len(data))
        return data[offset:end]

    def get_tail(self, name: str, length: int, *, version: str | None = None) -> bytes:
        base.check_range(0, length)
        data = self.find(name, version).data
        return data[max(0, len(data) - length) :]

    def head(self, name: str) -> base.ObjectInfo:
        version = self.find(name, None).version
        return base.ObjectInfo(name, version.size_bytes, version.modified)

    def put(self, name: str, data: base.Buffer) -> None:
        base.check_size(base.check_name(name), len(data))
        self.add(name, bytes(data))

    def put_if_absent(self, name: str, data: bytes) -> None:
        with self.history.lock:
            try:
                self.find(name, None)
            except ObjectMissing:
                self.put(name, data)
                return
        raise ObjectExists(f"{name} exists already")

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        base.check_prefix(prefix)
        names = sorted(name for name in self.kept if name.startswith(prefix))
        return iter([self.head(name) for name in names if self._newest(name)])

    def delete(self, name: str) -> None:
        if base.check_name(name) in self.kept:
            self.add(name, None)

    def close(self) -> None:
        pass

    def add(self, name: str, data: bytes | None) -> None:
        with self.history.lock:
            mine = self.kept.setdefault(name, [])
            self.history.count += 1
            now = self.clock.now()
            etag = "" if data is None else hashlib.md5(data).hexdigest()
            size = len(data or b"")
            version = Version(name, f"v{self.history.count}", size, now, etag, data is None)
            locked = data is not None and self.lock is not None and self.lock.covers(name)
            until = self.lock.until(now) if locked and self.lock is not None else None
            mine.append(Kept(version, data or b"", until))

    def find(self, name: str, version: str | None) -> Kept:
        mine = self.kept.get(base.check_name(name), [])
        wanted = [kept for kept in mine if kept.version.id == version] if version else mine[-1:]
        if not wanted or wanted[0].version.marker:
            raise ObjectMissing(f"there is no {name} in {self.location}")
        return wanted[0]

    def _newest(self, name: str) -> bool:
        return not self.kept[name][-1].version.marker


class MemoryTrials:
    """Of a service as it should be."""

    takes_wrong = False

    def put_cut(self, name: str, data: bytes) -> None:
        pass

    def put_wrong(self, name: str, data: bytes) -> bool:
        return self.takes_wrong


class MemoryHistory:
    def __init__(self, store: VersionedMemory) -> None:
        self.store = store
        self.state: Versioning = "kept"
        self.count = 0
        self.lock = threading.RLock()

    def versioning(self) -> Versioning:
        return self.state

    def list(self, prefix: str) -> Iterator[Version]:
        base.check_prefix(prefix)
        with self.lock:
            names = sorted(name for name in self.store.kept if name.startswith(prefix))
            return iter([kept.version for name in names for kept in self.store.kept[name]])

    def delete(self, name: str, version: str) -> None:
        with self.lock:
            mine = self.store.kept.get(name, [])
            kept = next((kept for kept in mine if kept.version.id == version), None)
            if kept is None:
                return
            if not self.store.may_delete:
                raise StoreRefused("access denied: memory: (AccessDenied)")
            if kept.until is not None and kept.until > self.store.clock.now():
                raise StoreRefused("access denied: memory: it is locked (AccessDenied)")
            mine.remove(kept)
            if not mine:
                del self.store.kept[name]

    def retained_until(self, name: str, version: str) -> dt.datetime | None:
        return self.store.find(name, version).until

    def retain(self, name: str, version: str, mode: LockMode, until: dt.datetime) -> None:
        kept = self.store.find(name, version)
        if kept.until is not None and until < kept.until:
            raise StoreRefused("access denied: memory: (AccessDenied)")
        kept.until = until
