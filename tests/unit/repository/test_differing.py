"""Whatever a target holds, it becomes the disk of the point, and only what differs is written."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import DamageFound, HostError
from drvm.core.extents import Extent, ExtentKind
from drvm.repository import differing as module
from drvm.repository.differing import Differing, differences
from drvm.repository.reader import write_differing
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault

UNIT = BLOCK_BYTES


@dataclass
class Target:
    """A disk in memory, with some holes that it knows of."""

    content: bytearray
    holes: list[tuple[int, int]] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)
    zeroed: list[tuple[int, int]] = field(default_factory=list)

    def extents(self) -> Iterator[Extent]:
        at = 0
        for start, end in self.holes:
            if start > at:
                yield Extent(at, start - at, ExtentKind.DATA)
            yield Extent(start, end - start, ExtentKind.ZERO)
            at = end
        if at < len(self.content):
            yield Extent(at, len(self.content) - at, ExtentKind.DATA)

    def read_into(self, offset: int, target: memoryview) -> None:
        target[:] = self.content[offset : offset + len(target)]

    def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data
        self.written.append((offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)
        self.zeroed.append((offset, length))


def turn(vault: Vault, target: Target, *, while_alike: bool = False) -> Differing:
    (point,) = vault.repository.points().points
    repository, (disk,) = vault.repository, point.manifest.disks
    disk_map = repository.disk_map(disk)
    tools = repository.hasher, repository.tables, target
    found = differences(disk_map, *tools, while_alike=while_alike)
    return write_differing(
        *(disk_map, repository.packs, repository.hasher),
        *(found, target.write, target.zero),
    )


def blocks_that_differ(one: bytes, two: bytes) -> set[int]:
    return {
        at // UNIT for at in range(0, len(one), UNIT) if one[at : at + UNIT] != two[at : at + UNIT]
    }


def touched(ranges: list[tuple[int, int]]) -> list[int]:
    return [n for at, length in ranges for n in range(at // UNIT, -(-(at + length) // UNIT))]


def disk(source: random.Random, blocks: int, cut: int) -> bytes:
    """Of a few kinds of blocks, so that two disks have some in common, also in other places."""
    kinds = [bytes(UNIT), bytes(UNIT), *(random.Random(n).randbytes(UNIT) for n in range(20))]
    content = b"".join(source.choice(kinds) for _ in range(blocks))
    return content[: len(content) - cut]


def mixed(source: random.Random, wanted: bytes, share: float) -> bytearray:
    """What a target may hold: of another state, or of an attempt that was killed."""
    content = bytearray(wanted)
    for at in range(0, len(content), UNIT):
        if source.random() < share:
            length = min(UNIT, len(content) - at)
            kinds = [bytes(length), source.randbytes(length), content[:length]]
            content[at : at + length] = source.choice(kinds)
    return content


def holes(source: random.Random, content: bytes) -> list[tuple[int, int]]:
    """Some of the ranges that are zeroes, not in whole blocks."""
    found, at = [], 0
    while at < len(content):
        end = at
        while end < len(content) and not any(content[end : end + 512]):
            end = min(end + 512, len(content))
        if end > at and source.random() < 0.7:
            found.append((at, end))
        at = max(end, at + 512)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 300),
    st.sampled_from([0, 1, 512, 4095]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.sampled_from([1, 3, 1024]),
)
def test_a_target_becomes_the_disk_and_only_what_differs_is_written(
    seed, blocks, cut, share, piece
):
    source = random.Random(seed)
    wanted = disk(source, blocks, cut)
    held = mixed(source, wanted, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_BLOCKS", piece)
        vault = new_vault()
        vault.save([wanted])
        target = Target(bytearray(held), holes(source, held))
        done = turn(vault, target)
    assert target.content == wanted
    changed = [*touched(target.written), *touched(target.zeroed)]
    assert len(changed) == len(set(changed))
    assert set(changed) == blocks_that_differ(wanted, held)
    assert done.written_bytes == len(touched(target.written)) * UNIT
    assert done.zeroed_bytes == sum(length for _, length in target.zeroed)


@pytest.fixture(scope="module")
def large_objects() -> tuple[dict[str, tuple[bytes, dt.datetime]], bytes]:
    """Leaves of data, of zeroes, and of both: made once, the store copied for every test."""
    noise = random.Random(1).randbytes(2 * LEAF_BYTES // 8)
    content = noise + bytes(2 * LEAF_BYTES - len(noise)) + bytes(LEAF_BYTES) + noise[: 5 * UNIT + 9]
    vault = new_vault()
    vault.save([content], step=1 << 24)
    return vault.store.objects, content


@pytest.fixture
def large(large_objects) -> tuple[Vault, bytes]:
    objects, content = large_objects
    store = MemoryStore()
    store.objects = dict(objects)
    return Vault(store, Repository.open(store, PASSPHRASE)), content


def test_a_target_that_is_right_is_read_once_and_no_table_is_asked_for(large, monkeypatch):
    vault, content = large
    monkeypatch.setattr(vault.repository.tables, "ensure", None)
    monkeypatch.setattr(vault.repository.tables, "at", None)
    target = Target(bytearray(content))
    assert turn(vault, target) == Differing(len(content), 0, 0)
    assert not target.written and not target.zeroed


def test_holes_are_not_read(large):
    vault, content = large
    target = Target(bytearray(content))
    target.holes = [(2 * LEAF_BYTES // 8, 3 * LEAF_BYTES)]
    assert turn(vault, target).read_bytes == len(content) - (3 * LEAF_BYTES - 2 * LEAF_BYTES // 8)


@pytest.mark.parametrize("right", [0, 1, 3])
def test_a_target_of_something_else_is_read_no_further_than_it_is_alike(large, monkeypatch, right):
    """Window by window, of a leaf each here: some are right, and behind them is anything."""
    vault, content = large
    monkeypatch.setattr(module, "WINDOW_LEAVES", 1)
    kept = right * LEAF_BYTES
    target = Target(bytearray(content[:kept] + b"\xaa" * (len(content) - kept)))
    done = turn(vault, target, while_alike=True)
    assert target.content == content
    assert done.read_bytes == min(kept + LEAF_BYTES, len(content))
    assert done.written_bytes + done.zeroed_bytes >= len(content) - kept


def test_an_empty_target_is_filled_without_any_table(large, monkeypatch):
    vault, content = large
    monkeypatch.setattr(vault.repository.tables, "at", None)
    target = Target(bytearray(len(content)))
    target.holes = [(0, len(content))]
    turn(vault, target)
    assert target.content == content


@pytest.mark.parametrize("lie", ["absent", "wrong"])
def test_a_table_that_lies_or_is_lost_costs_no_more_than_bytes(large, monkeypatch, lie):
    """A key holder can write tables that say what is not so: those of another disk, for one."""
    vault, content = large
    held = bytearray(content)
    held[: 9 * UNIT] = random.Random(2).randbytes(9 * UNIT)
    found = vault.repository.hasher.ids(bytes(held[:UNIT]))

    def at(_name: bytes, ordinals: np.ndarray) -> np.ndarray | None:
        return None if lie == "absent" else np.repeat(found, len(ordinals), axis=0)

    monkeypatch.setattr(vault.repository.tables, "at", at)
    target = Target(held)
    turn(vault, target)
    assert target.content == content


def test_a_pack_that_holds_other_blocks_is_damage(large):
    vault, content = large
    for name, (data, modified) in list(vault.store.objects.items()):
        if name.startswith("packs/") and len(data) > LEAF_BYTES // 8:
            vault.store.objects[name] = data[:5000] + b"?" + data[5001:], modified
    with pytest.raises(DamageFound):
        turn(vault, Target(bytearray(len(content))))


def test_a_target_that_can_not_be_read_is_told(large):
    vault, content = large

    class Broken(Target):
        def read_into(self, offset: int, target: memoryview) -> None:
            raise HostError(f"the image can't be read at {offset}")

    with pytest.raises(HostError, match="can't be read"):
        turn(vault, Broken(bytearray(content)))
