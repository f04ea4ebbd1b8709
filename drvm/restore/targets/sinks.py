"""Where a disk goes: image files and devices, written by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from drvm.host.disks import BlockWriter


class Writers:
    """A writer of its own for every thread that writes to one disk.

    ``flush`` and ``close`` are for one thread, when the others have ended.
    """

    def __init__(self, open_writer: Callable[[], BlockWriter]) -> None:
        self._open = open_writer
        self._own = threading.local()
        self._lock = threading.Lock()
        self._opened: list[BlockWriter] = []

    def write(self, offset: int, data: memoryview) -> None:
        self._writer().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._writer().zero(offset, length)

    def flush(self) -> None:
        """Whatever was written is durable when this returns."""
        for writer in self._opened:
            writer.flush()

    def close(self) -> None:
        for writer in self._opened:
            writer.close()

    def _writer(self) -> BlockWriter:
        writer: BlockWriter | None = getattr(self._own, "writer", None)
        if writer is None:
            writer = self._own.writer = self._open()
            with self._lock:
                self._opened.append(writer)
        return writer


def at_first_write(
    write: Callable[[int, memoryview], None], told: Callable[[], object]
) -> Callable[[int, memoryview], None]:
    """The same; ``told`` is called behind the first write: a step, so that it can be the last."""
    begun = False

    def writing(offset: int, data: memoryview) -> None:
        nonlocal begun
        write(offset, data)
        if not begun:
            begun = True
            told()

    return writing
