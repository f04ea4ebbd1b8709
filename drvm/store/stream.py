"""Bytes as a file."""

from __future__ import annotations

import io
from collections.abc import Callable

from drvm.store.base import Buffer


class ByteStream(io.RawIOBase):
    """Bytes as a file that is read, without the copy of them all that ``BytesIO`` makes.

    ``gate`` is called with the length of each piece before it is given away: it may wait, and
    what it raises ends the reading."""

    def __init__(self, data: Buffer, gate: Callable[[int], None]) -> None:
        self._data = memoryview(data)
        self._gate = gate
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else min(self._at + size, len(self._data))
        self._gate(end - self._at)
        piece = bytes(self._data[self._at : end])
        self._at = end
        return piece

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = min(max(start + offset, 0), len(self._data))
        return self._at

    def tell(self) -> int:
        return self._at
