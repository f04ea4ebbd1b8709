"""Plain frames that will be needed again, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict


class FrameCache:
    """The frames used last, by pack and number. Safe for any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._frames: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pack: bytes, number: int) -> bytes | None:
        with self._lock:
            plain = self._frames.get((pack, number))
            if plain is not None:
                self._frames.move_to_end((pack, number))
            return plain

    def put(self, pack: bytes, number: int, plain: bytes) -> None:
        with self._lock:
            self._forget(pack, number)
            self._frames[pack, number] = plain
            self._held_bytes += len(plain)
            while self._held_bytes > self._max_bytes:
                _, oldest = self._frames.popitem(last=False)
                self._held_bytes -= len(oldest)

    def drop(self, pack: bytes, number: int) -> None:
        """It is not needed any more."""
        with self._lock:
            self._forget(pack, number)

    def _forget(self, pack: bytes, number: int) -> None:
        plain = self._frames.pop((pack, number), None)
        if plain is not None:
            self._held_bytes -= len(plain)
