"""Extents: what a capture knows about a disk before a byte of it is read."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class ExtentKind(enum.Enum):
    """What a range of a disk is, at the instant of the capture."""

    DATA = "data"
    """Read it."""
    ZERO = "zero"
    """It reads as zeroes now, whatever it was before: discarded, zeroed, or never written."""
    UNCHANGED = "unchanged"
    """It is what it was in the parent point."""


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes from ``offset`` on. Both in bytes, ``length`` > 0."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length

    def cut(self, step_bytes: int) -> Iterator[Extent]:
        """Pieces that end at multiples of ``step_bytes``."""
        at = self.offset
        while at < self.end:
            end = min(self.end, (at // step_bytes + 1) * step_bytes)
            yield Extent(at, end - at, self.kind)
            at = end


def cover(extents: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """Yield ``extents`` joined where kinds agree, having proven that they cover the disk.

    The input must be ordered, without gaps and overlaps, from 0 to ``size_bytes``. Raises
    ``ValueError`` at the first extent that breaks this: a gap would be a range of the guest's
    disk that nobody looked at.
    """
    held: Extent | None = None
    position = 0
    for extent in extents:
        if extent.offset != position or extent.length <= 0 or extent.end > size_bytes:
            raise ValueError(f"extent {extent} does not follow {position} of {size_bytes} bytes")
        position = extent.end
        if held is not None and held.kind is extent.kind:
            held = Extent(held.offset, held.length + extent.length, held.kind)
            continue
        if held is not None:
            yield held
        held = extent
    if position != size_bytes:
        raise ValueError(f"extents end at {position} of {size_bytes} bytes")
    if held is not None:
        yield held


def align(extents: Iterable[Extent], size_bytes: int, unit_bytes: int) -> Iterator[Extent]:
    """Yield the same disk in whole units (but for its end); what is doubtful becomes DATA.

    A unit is ZERO or UNCHANGED only if one such extent covers it whole. The input is as
    ``cover`` takes it, and is checked in the same way.
    """
    done = 0
    for extent in cover(extents, size_bytes):
        if extent.kind is ExtentKind.DATA:
            continue
        start = -(-extent.offset // unit_bytes) * unit_bytes
        end = extent.end if extent.end == size_bytes else extent.end // unit_bytes * unit_bytes
        if end <= start:
            continue
        if start > done:
            yield Extent(done, start - done, ExtentKind.DATA)
        yield Extent(start, end - start, extent.kind)
        done = end
    if done < size_bytes:
        yield Extent(done, size_bytes - done, ExtentKind.DATA)
