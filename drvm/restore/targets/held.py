"""What an image holds already, for those who write only what differs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from drvm.core.extents import Extent
from drvm.host.disks import BlockReader


class HeldDisk:
    """Implements ``Held`` for the first ``size_bytes`` of an image, which may be up to a sector
    larger. A reader of its own for every thread; ``close`` when those have ended."""

    def __init__(
        self,
        open_reader: Callable[[], BlockReader],
        extents: Callable[[], Iterator[Extent]],
        size_bytes: int,
    ) -> None:
        self._open = open_reader
        self._extents = extents
        self._size_bytes = size_bytes
        self._own = threading.local()
        self._lock = threading.Lock()
        self._opened: list[BlockReader] = []

    def extents(self) -> Iterator[Extent]:
        for extent in self._extents():
            length = min(extent.length, self._size_bytes - extent.offset)
            if length > 0:
                yield Extent(extent.offset, length, extent.kind)

    def read_into(self, offset: int, target: memoryview) -> None:
        reader: BlockReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._open()
            with self._lock:
                self._opened.append(reader)
        reader.read_into(offset, target)

    def close(self) -> None:
        for reader in self._opened:
            reader.close()
