"""A store in memory, for tests of what stands above the stores."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import ObjectExists, ObjectMissing
from drvm.store import base


class MemoryStore:
    """Keeps the contract of ``Store``. ``objects`` may be looked at, and damaged, by tests."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.objects: dict[str, tuple[bytes, dt.datetime]] = {}
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        return "memory:"

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        base.check_range(offset, length)
        data = self._data(name)
        end = len(data) if length is None else offset + length
        if offset > len(data) or end > len(data):
            raise base.past_the_end(name, offset, length, len(data))
        return data[offset:end]

    def get_tail(self, name: str, length: int) -> bytes:
        base.check_range(0, length)
        data = self._data(name)
        return data[max(0, len(data) - length) :]

    def head(self, name: str) -> base.ObjectInfo:
        self._data(name)
        return self._info(name)

    def put(self, name: str, data: base.Buffer) -> None:
        base.check_size(base.check_name(name), len(data))
        with self._lock:
            self.objects[name] = (bytes(data), self._clock.now())

    def put_if_absent(self, name: str, data: bytes) -> None:
        base.check_size(base.check_name(name), len(data))
        with self._lock:
            if name in self.objects:
                raise ObjectExists(f"{name} exists already")
            self.objects[name] = (data, self._clock.now())

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        base.check_prefix(prefix)
        with self._lock:
            names = sorted(name for name in self.objects if name.startswith(prefix))
            return iter([self._info(name) for name in names])

    def delete(self, name: str) -> None:
        with self._lock:
            self.objects.pop(base.check_name(name), None)

    def close(self) -> None:
        pass

    def _data(self, name: str) -> bytes:
        try:
            return self.objects[base.check_name(name)][0]
        except KeyError:
            raise ObjectMissing(f"there is no {name} in {self.location}") from None

    def _info(self, name: str) -> base.ObjectInfo:
        data, modified = self.objects[name]
        return base.ObjectInfo(name, len(data), modified)
