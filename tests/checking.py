"""What a check says of a repository, and what a restore of everything would say."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, block_count
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO
from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound
from drvm.core.progress import NoProgress
from drvm.repository.checks import parse_share
from drvm.repository.layout import pack_name
from drvm.repository.manifest import Disk
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.upkeep.check import CheckResult, plan_check, run_check

Lost = dict[str, dict[str, set[int]]]
"""Point -> disk -> numbers of lost blocks; other parts have the number -1."""


def check(
    repository: Repository, share: str | None = "1/1", *, write: bool = True, host: str = "here"
) -> CheckResult:
    """As long after whatever is there that no writer is still at work."""
    later = SystemClock().now() + dt.timedelta(hours=2)
    plan = plan_check(repository, parse_share(share) if share is not None else None, later)
    return run_check(repository, plan, NoProgress(), SystemClock(), host, write=write)


def told(result: CheckResult) -> Lost:
    """What the check says is lost."""
    lost: Lost = {}
    for hit in result.hits:
        parts: dict[str, set[int]] = {part: {-1} for part in hit.parts}
        for disk in hit.disks:
            assert not disk.more_ranges
            parts[disk.target] = {
                number
                for offset, length in disk.ranges
                for number in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
            }
        lost[hit.id] = parts
    return lost


def brute_force(repository: Repository, contents: dict[str, tuple[Point, list[bytes]]]) -> Lost:
    """What a restore of everything, block by block, can't bring back of these points."""
    listed = {point.id: point for point in repository.points().points}
    lost: Lost = {}
    for point_id, (_, disks) in contents.items():
        point = listed.get(point_id)
        if point is None:
            lost[point_id] = {"manifest": {-1}}
            continue
        parts: dict[str, set[int]] = {}
        for name, blob in (("definition", point.manifest.definition),):
            try:
                assert blob is not None
                repository.blob(blob)
            except DamageFound:
                parts[name] = {-1}
        for disk, content in zip(point.manifest.disks, disks, strict=True):
            blocks = set(_lost_blocks(repository, disk, content))
            if blocks:
                parts[disk.target] = blocks
        if parts:
            lost[point_id] = parts
    return lost


def _lost_blocks(repository: Repository, disk: Disk, content: bytes) -> Iterator[int]:
    disk_map = repository.disk_map(disk)
    padded = content + bytes(-len(content) % BLOCK_BYTES)
    for index in range(disk_map.leaves):
        first = index * LEAF_BLOCKS
        count = min(LEAF_BLOCKS, block_count(disk.size_bytes) - first)
        try:
            leaf = disk_map.leaf(index)
        except DamageFound:
            yield from range(first, first + count)
            continue
        if leaf is None:
            continue
        lost, wrong = set(), False
        for at in np.flatnonzero(leaf.pack != ZERO).tolist():
            block = first + at
            wanted = padded[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            frame, slot = divmod(int(leaf.ordinal[at]), FRAME_BLOCKS)
            name = leaf.packs[int(leaf.pack[at])]
            try:
                plain = repository.packs.frame(name, frame)
            except DamageFound:
                lost.add(block)
                continue
            wrong |= plain[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES] != wanted
        yield from range(first, first + count) if wrong else sorted(lost)


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Names of the objects of a repository by what they are."""

    repository: Repository

    def of(self, name: str) -> str:
        pack = pack_name(name)
        if pack is None:
            return name.split("/")[0]
        return self.repository.packs.open(pack).footer.kind

    def names(self, kind: str) -> list[str]:
        store = self.repository.store
        return sorted(i.name for i in store.list("") if self.of(i.name) == kind)
