"""What will be read next, told from what was read before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from drvm.core.units import KIB, MIB

_STREAMS = 16
"""Places that are read on at the same time: connections, files of a guest."""
_SLACK_BYTES = 4 * MIB
"""Requests of one stream that are under way at once overtake each other by so much."""
_FIRST_BYTES = 512 * KIB
_MOST_BYTES = 16 * MIB
_FOLLOWED = 2
"""So many reads follow each other before a stream is believed."""


@dataclass(slots=True)
class _Stream:
    """``next``: where it is; ``until``: what was told to be read ahead; ``window_bytes``: how far
    ahead it is kept."""

    next: int
    until: int
    followed: int = 0
    window_bytes: int = _FIRST_BYTES


class Ahead:
    """Sequential reads of one disk are recognised, several at a time, and told to be read ahead in
    ranges that double up to 16 MiB; single reads are not. For several threads."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._made = 0
        self._lock = threading.Lock()

    def seen(self, offset: int, length: int) -> tuple[int, int] | None:
        """A read; returns the range (offset, length) to be fetched now, if there is one."""
        with self._lock:
            stream = self._stream_of(offset)
            stream.next = max(stream.next, offset + length)
            if stream.followed < _FOLLOWED:
                return None
            start = max(stream.until, stream.next)
            if start - stream.next > stream.window_bytes // 2:
                return None
            end = min(stream.next + stream.window_bytes, self._size_bytes)
            stream.window_bytes = min(2 * stream.window_bytes, _MOST_BYTES)
            if end <= start:
                return None
            stream.until = end
            return start, end - start

    def _stream_of(self, offset: int) -> _Stream:
        """The one that a read at ``offset`` goes on with, or a new one in place of the oldest."""
        for number, stream in reversed(self._streams.items()):
            slack = _SLACK_BYTES if stream.followed >= _FOLLOWED else 0
            if stream.next - slack <= offset <= stream.next + slack:
                self._streams.move_to_end(number)
                stream.followed += 1
                return stream
        self._made += 1
        stream = self._streams[self._made] = _Stream(offset, offset)
        while len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)
        return stream
