"""From what a dirty bitmap marks, and what an image allocates, to extents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind, cover

_MAX_CHANGES = 1 << 19


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of which each of two sources says one thing."""

    offset: int
    end: int
    kind: ExtentKind
    other: ExtentKind

    @property
    def clean(self) -> bool:
        return self.other is ExtentKind.UNCHANGED


def combine(
    allocation: Iterable[Extent], changes: Iterable[Extent], size_bytes: int
) -> Iterator[Extent]:
    """The disk's extents. ``allocation`` knows DATA and ZERO; ``changes`` knows UNCHANGED, and
    DATA for what was written to since the parent point. Both as ``cover`` takes them.

    What was written to is what the allocation says of it. What was not is UNCHANGED, even where it
    is known to be ZERO: so whole leaves of the parent's map are kept as they are.

    But behind the last DATA that was not written to, ZERO is believed rather than UNCHANGED. An
    image that was made smaller and then larger again reads as zeroes from the cut on, and its
    bitmap says nothing of it (QEMU 7.2; ``tests/unit/snapshot/test_changes.py`` holds it). Behind
    such a cut there can be no DATA that is not marked.
    """
    pieces = list(_pieces(list(cover(allocation, size_bytes)), list(cover(changes, size_bytes))))
    sure_end = max((p.end for p in pieces if p.clean and p.kind is ExtentKind.DATA), default=0)
    for piece in pieces:
        kept = piece.clean and piece.end <= sure_end
        kind = ExtentKind.UNCHANGED if kept else piece.kind
        yield Extent(piece.offset, piece.end - piece.offset, kind)


def bounded(changes: Iterable[Extent], words: str) -> tuple[Extent, ...]:
    """All of them, in memory. Raises ``HostError``, which begins with ``words``, where they are
    more than is reasonable."""
    found = tuple(islice(changes, _MAX_CHANGES + 1))
    if len(found) > _MAX_CHANGES:
        raise HostError(f"{words} more than {_MAX_CHANGES} ranges")
    return found


def agreed(first: Iterable[Extent], second: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """What two looks at an allocation tell together: ZERO only where both say so."""
    one, two = list(cover(first, size_bytes)), list(cover(second, size_bytes))
    zero = ExtentKind.ZERO
    for piece in _pieces(one, two):
        kind = zero if piece.kind is piece.other is zero else ExtentKind.DATA
        yield Extent(piece.offset, piece.end - piece.offset, kind)


def _pieces(one: list[Extent], two: list[Extent]) -> Iterator[_Piece]:
    at = here = there = 0
    while here < len(one) and there < len(two):
        first, second = one[here], two[there]
        end = min(first.end, second.end)
        yield _Piece(at, end, first.kind, second.kind)
        at = end
        here += first.end == end
        there += second.end == end
