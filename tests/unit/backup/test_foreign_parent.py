"""What another host says of a machine's last point is not kept unread."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.extents import Extent, ExtentKind
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress, no_trace
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.repository.trust import DedupTrust, HostTrust
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.store.memory import MemoryStore
from tests.fakes.still_engine import StillDisk
from tests.unit.repository.conftest import PASSPHRASE, VM, Vault, cheap_key_derivation

__all__ = ["cheap_key_derivation"]

SIZE = 4 << 20


@dataclass(frozen=True)
class Hinted(StillDisk):
    """All of it is as in the parent, where there is one."""

    parent: bool = False

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size_bytes, ExtentKind.UNCHANGED if self.parent else ExtentKind.DATA)


@dataclass(frozen=True)
class HintingEngine:
    path: Path
    name: str = "hinting"

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        disk = Hinted("vda", self.path, parent=request.parent is not None)
        now = dt.datetime.now(dt.UTC)
        yield FrozenMachine("web1", VM, now, "offline", self.name, (disk,))


def backed_up(store: MemoryStore, path: Path, key: bytes, rule: DedupTrust = "verified") -> Point:
    repository = Repository.open(store, PASSPHRASE, trust=HostTrust(rule, key))
    backup = Backup(
        repository,
        writer="kvm1",
        level=1,
        clock=SystemClock(),
        progress=NoProgress(),
        trace=no_trace,
    )
    request = CaptureRequest("web1", new_point_id())
    return backup.run(HintingEngine(path), request, VM).point


def restored(store: MemoryStore, point: Point) -> bytes:
    (content,) = Vault(store, Repository.open(store, PASSPHRASE)).load(point)
    return content


@pytest.mark.parametrize("rule", ["verified", "own"])
def test_unchanged_parts_are_read_where_the_parent_is_of_another_host(
    tmp_path: Path, rule: DedupTrust
) -> None:
    store = MemoryStore()
    Repository.create(store, PASSPHRASE)
    truth, lie = tmp_path / "truth", tmp_path / "lie"
    truth.write_bytes(os.urandom(SIZE))
    lie.write_bytes(os.urandom(SIZE))
    backed_up(store, lie, b"t" * 32)
    point = backed_up(store, truth, b"o" * 32, rule)
    assert point.manifest.parent is None
    assert restored(store, point) == truth.read_bytes()
    again = backed_up(store, truth, b"o" * 32, rule)
    assert again.manifest.parent == point.id and again.manifest.disks[0].read_bytes == 0
    assert restored(store, again) == truth.read_bytes()


def test_who_believes_the_repository_keeps_what_another_host_says(tmp_path: Path) -> None:
    store = MemoryStore()
    Repository.create(store, PASSPHRASE)
    truth, lie = tmp_path / "truth", tmp_path / "lie"
    truth.write_bytes(os.urandom(SIZE))
    lie.write_bytes(os.urandom(SIZE))
    backed_up(store, lie, b"t" * 32)
    point = backed_up(store, truth, b"o" * 32, "repository")
    assert restored(store, point) == lie.read_bytes()
