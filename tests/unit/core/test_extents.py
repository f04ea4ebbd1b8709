"""Extents cover a disk whole, or are refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.extents import Extent, ExtentKind, align, cover

DATA, ZERO, UNCHANGED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNCHANGED

lengths = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(ExtentKind)), max_size=20)


def laid_out(parts: list[tuple[int, ExtentKind]]) -> tuple[list[Extent], int]:
    extents, at = [], 0
    for length, kind in parts:
        extents.append(Extent(at, length, kind))
        at += length
    return extents, at


def kinds(extents: list[Extent]) -> list[ExtentKind]:
    """One kind a byte."""
    return [extent.kind for extent in extents for _ in range(extent.length)]


@given(lengths)
def test_cover_joins_neighbours_and_keeps_every_byte(parts):
    extents, size = laid_out(parts)
    joined = list(cover(extents, size))
    assert kinds(joined) == kinds(extents)
    assert all(a.kind is not b.kind for a, b in itertools.pairwise(joined))


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(0, 5, DATA), Extent(6, 4, ZERO)],
        [Extent(0, 6, DATA), Extent(5, 5, ZERO)],
        [Extent(1, 9, DATA)],
        [Extent(0, 9, DATA)],
        [Extent(0, 11, DATA)],
        [Extent(0, 0, DATA), Extent(0, 10, DATA)],
        [],
    ],
)
def test_gaps_overlaps_and_wrong_ends_are_refused(extents):
    with pytest.raises(ValueError, match="extent"):
        list(cover(extents, 10))


@given(lengths, st.integers(1, 16))
def test_align_never_turns_data_into_anything_else(parts, unit):
    extents, size = laid_out(parts)
    before, aligned = kinds(extents), list(align(extents, size, unit))
    after = kinds(aligned)
    assert len(after) == size
    for start in range(0, size, unit):
        whole = set(before[start : start + unit])
        expected = whole.pop() if len(whole) == 1 else DATA
        assert set(after[start : start + unit]) == {expected}
    assert all(extent.offset % unit == 0 for extent in aligned)
