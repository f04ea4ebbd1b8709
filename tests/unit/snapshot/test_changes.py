"""UNCHANGED is never said of a range that is not as it was in the parent point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind, cover
from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.host.nbd import NbdExport, nbd_changes, nbd_extents
from drvm.snapshot.changes import agreed, combine

UNIT = 4096
DATA, ZERO, UNCHANGED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNCHANGED


def extents(*lengths_and_kinds: tuple[int, ExtentKind]) -> Iterator[Extent]:
    at = 0
    for length, kind in lengths_and_kinds:
        yield Extent(at, length, kind)
        at += length


def combined(
    allocation: tuple[tuple[int, ExtentKind], ...], changes: tuple[tuple[int, ExtentKind], ...]
) -> list[tuple[int, ExtentKind]]:
    size = sum(length for length, _ in allocation)
    found = cover(combine(extents(*allocation), extents(*changes), size), size)
    return [(extent.length, extent.kind) for extent in found]


def test_what_was_written_to_is_read_and_what_was_discarded_is_zero() -> None:
    found = combined(((4, DATA), (4, ZERO), (4, DATA)), ((2, UNCHANGED), (4, DATA), (6, UNCHANGED)))
    assert found == [(2, UNCHANGED), (2, DATA), (2, ZERO), (6, UNCHANGED)]


def test_zeroes_behind_the_last_sure_data_are_zeroes_whatever_the_bitmap_says() -> None:
    found = combined(
        ((2, ZERO), (4, DATA), (2, ZERO), (2, DATA), (2, ZERO)),
        ((8, UNCHANGED), (2, DATA), (2, UNCHANGED)),
    )
    assert found == [(6, UNCHANGED), (2, ZERO), (2, DATA), (2, ZERO)]


UNITS = 16
LOOKS = st.lists(st.sampled_from([DATA, ZERO]), min_size=UNITS, max_size=UNITS)


@given(LOOKS, LOOKS)
def test_two_looks_agree_on_zeroes_or_it_is_data(
    first: list[ExtentKind], second: list[ExtentKind]
) -> None:
    one, two = ([(UNIT, kind) for kind in kinds] for kinds in (first, second))
    size = UNITS * UNIT
    found = list(cover(agreed(extents(*one), extents(*two), size), size))
    told = [extent.kind for extent in found for _ in range(extent.length // UNIT)]
    assert told == [ZERO if a is b is ZERO else DATA for a, b in zip(first, second, strict=True)]


@dataclass
class Model:
    """An image with bitmaps as QEMU keeps them: writing, zeroing and discarding mark every
    bitmap; making it larger or smaller marks nothing; a crash leaves the bitmaps inconsistent.
    A unit holds a number, 0 for zeroes; ``bitmap`` is that of the last good point."""

    content: list[int]
    allocated: list[bool]
    bitmap: list[bool] | None = None
    point: list[int] | None = None
    numbers: int = 0

    def put(self, at: int, count: int, *, zero: bool, allocate: bool) -> None:
        self.numbers += 1
        for unit in range(min(at, len(self.content)), min(at + count, len(self.content))):
            self.content[unit] = 0 if zero else self.numbers
            self.allocated[unit] = allocate
            if self.bitmap is not None:
                self.bitmap[unit] = True

    def resize(self, units: int) -> None:
        for values, fresh in ((self.content, 0), (self.allocated, False), (self.bitmap, False)):
            if values is not None:
                del values[units:]
                values.extend([fresh] * (units - len(values)))  # type: ignore[list-item]

    def back_up(self, *, committed: bool) -> None:
        size = len(self.content) * UNIT
        found = list(extents(*((UNIT, DATA if a else ZERO) for a in self.allocated)))
        if self.bitmap is not None and self.point is not None and len(self.point) * UNIT == size:
            marks = extents(*((UNIT, DATA if b else UNCHANGED) for b in self.bitmap))
            found = list(combine(found, marks, size))
        stored = []
        for extent in cover(found, size):
            units = slice(extent.offset // UNIT, extent.end // UNIT)
            if extent.kind is UNCHANGED:
                assert self.point is not None
                stored += self.point[units]
            else:
                zeroes = [0] * (extent.length // UNIT)
                stored += self.content[units] if extent.kind is DATA else zeroes
        assert stored == self.content
        if committed:
            self.point, self.bitmap = stored, [False] * len(stored)


_RANGE = st.tuples(st.integers(0, 15), st.integers(1, 8))
_STEP = st.one_of(
    st.tuples(st.just("write"), _RANGE),
    st.tuples(st.just("write"), st.tuples(st.just(0), st.just(16))),
    st.tuples(st.just("write-zeroes"), _RANGE),
    st.tuples(st.just("zero"), _RANGE),
    st.tuples(st.just("trim"), _RANGE),
    st.tuples(st.just("resize"), st.sampled_from([4, 8, 12, 16])),
    st.tuples(st.just("cut-and-grow"), st.integers(1, 8)),
    st.tuples(st.just("backup"), st.booleans()),
    st.tuples(st.just("backup"), st.just(True)),
    st.tuples(st.just("backup"), st.just(True)),
    st.tuples(st.just("crash"), st.none()),
)


@given(st.lists(_STEP, min_size=15, max_size=50))
def test_every_point_of_any_history_is_what_the_disk_was(steps: list[tuple[str, object]]) -> None:
    disk = Model([0] * 12, [False] * 12)
    for name, argument in steps:
        match name, argument:
            case "resize", int(units):
                disk.resize(units)
            case "cut-and-grow", int(units):
                size = len(disk.content)
                disk.resize(min(units, size))
                disk.resize(size)
            case "backup", bool(committed):
                disk.back_up(committed=committed)
            case "crash", _:
                disk.bitmap = None
            case _, (int(at), int(count)):
                allocate = name in ("write", "write-zeroes")
                disk.put(at, count, zero=name != "write", allocate=allocate)
    disk.back_up(committed=True)


def qemu_img(*arguments: object) -> None:
    SystemProcesses().run(["qemu-img", *map(str, arguments)], timeout_s=60)


def test_an_image_made_smaller_and_larger_again_reads_as_zeroes_from_the_cut_on(
    tmp_path: Path,
) -> None:
    """QEMU's bitmap keeps silent about it."""
    processes, raw, image = SystemProcesses(), tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(b"x" * 8 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    qemu_img("bitmap", "--add", "-f", "qcow2", image, "since")
    qemu_img("resize", "-q", "--shrink", "-f", "qcow2", image, 2 * MIB)
    qemu_img("resize", "-q", "-f", "qcow2", image, 8 * MIB)
    (bitmap,) = ImageTool(processes).info(image, "qcow2").bitmaps
    assert (bitmap.name, bitmap.flags) == ("since", {"auto"})
    with NbdExport(processes, image, "qcow2", bitmap="since") as export:
        changes = list(nbd_changes(export.socket, "since"))
        found = combine(nbd_extents(export.socket), changes, 8 * MIB)
        kinds = [(e.offset, e.kind) for e in cover(found, 8 * MIB)]
    assert {extent.kind for extent in changes} == {UNCHANGED}
    assert kinds == [(0, UNCHANGED), (2 * MIB, ZERO)]


def test_every_way_of_making_zeroes_is_marked(tmp_path: Path) -> None:
    """Written, written as zeroes with and without unmapping, and discarded."""
    processes, image = SystemProcesses(), tmp_path / "image"
    (tmp_path / "raw").write_bytes(b"x" * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", image)
    qemu_img("bitmap", "--add", "-f", "qcow2", image, "since")
    steps = ("write -P 0 0 64k", "write -z 128k 64k", "write -z -u 256k 64k", "discard 384k 64k")
    argv = ["qemu-io", "-f", "qcow2", *(word for step in steps for word in ("-c", step))]
    processes.run([*argv, str(image)], timeout_s=60)
    with NbdExport(processes, image, "qcow2", bitmap="since") as export:
        found = list(cover(nbd_changes(export.socket, "since"), MIB))
        allocated = list(nbd_extents(export.socket))
    marked = [e.offset // 65536 for e in found if e.kind is DATA]
    assert marked == [0, 2, 4, 6]
    kinds = [(e.offset // 65536, e.kind) for e in cover(combine(allocated, found, MIB), MIB)]
    assert kinds[:7:2] == [(0, DATA), (2, ZERO), (4, ZERO), (6, ZERO)]


def test_an_inconsistent_or_absent_bitmap_can_not_be_served(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", MIB)
    with (
        pytest.raises(HostError, match="does not serve"),
        NbdExport(SystemProcesses(), tmp_path / "image", "qcow2", bitmap="absent"),
    ):
        pytest.fail("served")
