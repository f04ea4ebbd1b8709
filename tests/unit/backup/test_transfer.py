"""Whatever a capture says of its extents, what is stored is the disk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.backup.transfer import transfer
from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.extents import Extent, ExtentKind
from drvm.core.progress import NoProgress
from drvm.repository.diskmap import DiskMap
from drvm.repository.reader import read_disk
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault

__all__ = ["cheap_key_derivation"]

SECTOR = 512


@dataclass
class Reader:
    content: bytes
    closed: list[bool]

    def read_into(self, offset: int, target: memoryview) -> None:
        assert offset + len(target) <= len(self.content)
        target[:] = self.content[offset : offset + len(target)]

    def close(self) -> None:
        self.closed.append(True)


@dataclass
class Source:
    content: bytes
    layout: list[Extent]
    target: str = "vda"
    format: str = "raw"
    method: str = "full-read"
    image_options: Mapping[str, str] = field(default_factory=dict)
    opened: int = 0
    closed: list[bool] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def extents(self) -> Iterator[Extent]:
        return iter(self.layout)

    def open(self) -> Reader:
        self.opened += 1
        return Reader(self.content, self.closed)


def stored(vault: Vault, source: Source, parent: DiskMap | None) -> tuple[DiskMap, bytes, int]:
    """(the new map, what comes back, how much was read)."""
    vault.repository.refresh()
    with vault.repository.session(level=1) as session:
        read_bytes = transfer(source, session.disk(source.size_bytes, parent), NoProgress())
        (root,) = session.finish().roots
    disk_map = DiskMap(vault.repository.packs.blob, root, source.size_bytes)
    content = bytearray(source.size_bytes)
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        content[offset : offset + len(data)] = data
    return disk_map, bytes(content), read_bytes


@st.composite
def histories(draw: st.DrawFn) -> tuple[bytes, bytes, list[Extent]]:
    """(old disk, new disk, an honest description of the new one against the old one)."""
    old, new, extents = bytearray(), bytearray(), []
    seed = random.Random(draw(st.integers(0, 1000)))
    for kind, sectors in draw(
        st.lists(st.tuples(st.sampled_from(ExtentKind), st.integers(1, 40)), max_size=12)
    ):
        length = sectors * SECTOR
        before, after = seed.randbytes(length), seed.randbytes(length)
        if kind is ExtentKind.ZERO:
            after = bytes(length)
        if kind is ExtentKind.UNCHANGED:
            after = before = draw(st.sampled_from([before, bytes(length)]))
        extents.append(Extent(len(new), length, kind))
        old += before
        new += after
    return bytes(old), bytes(new), extents


@settings(deadline=None, max_examples=60)
@given(histories())
def test_an_honest_description_gives_the_disk_back(history):
    old, new, extents = history
    vault = new_vault()
    whole = [Extent(0, len(old), ExtentKind.DATA)] if old else []
    parent, first, _ = stored(vault, Source(old, whole), None)
    _, second, read_bytes = stored(vault, Source(new, extents), parent)
    assert first == old
    assert second == new
    unaligned = 2 * 4096 * len(extents)
    data = sum(extent.length for extent in extents if extent.kind is ExtentKind.DATA)
    assert read_bytes <= data + unaligned


def test_unchanged_leaves_are_kept_without_reading():
    vault = new_vault()
    content = random.Random(1).randbytes(LEAF_BYTES) + bytes(5 * 4096)
    parent, _, _ = stored(vault, Source(content, [Extent(0, len(content), ExtentKind.DATA)]), None)
    source = Source(content, [Extent(0, len(content), ExtentKind.UNCHANGED)])
    _, again, read_bytes = stored(vault, source, parent)
    assert again == content
    assert (read_bytes, source.opened) == (0, 0)


def test_unchanged_without_a_parent_is_read():
    content = random.Random(1).randbytes(3 * 4096)
    source = Source(content, [Extent(0, len(content), ExtentKind.UNCHANGED)])
    _, again, read_bytes = stored(new_vault(), source, None)
    assert (again, read_bytes) == (content, len(content))


def test_every_reader_that_was_opened_is_closed_also_when_reading_fails():
    class Broken(Source):
        def open(self) -> Reader:
            reader = super().open()
            reader.content = b""
            return reader

    source = Broken(bytes([1]) * 8192, [Extent(0, 8192, ExtentKind.DATA)])
    with pytest.raises(AssertionError):
        stored(new_vault(), source, None)
    assert len(source.closed) == source.opened > 0
