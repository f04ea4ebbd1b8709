"""A backup whose parent is removed and collected meanwhile begins anew, once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.errors import RepositoryError
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress
from drvm.repository.layout import PACKS, POINTS
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.repository.trust import HostTrust
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.store.memory import MemoryStore
from tests.unit.backup.test_foreign_parent import SIZE, HintingEngine, restored
from tests.unit.repository.conftest import PASSPHRASE, VM, cheap_key_derivation

__all__ = ["cheap_key_derivation"]


@dataclass(frozen=True)
class Asked(HintingEngine):
    """``asked``: what it was asked to capture."""

    asked: list[CaptureRequest] = field(default_factory=list)

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        self.asked.append(request)
        with super().capture(request) as frozen:
            yield frozen


class World:
    def __init__(self, path: Path) -> None:
        self.store = MemoryStore()
        Repository.create(self.store, PASSPHRASE)
        self.path = path
        self.path.write_bytes(os.urandom(SIZE))
        self.asked: list[CaptureRequest] = []
        self.steps: list[str] = []

    def back_up(self, *collected: str) -> Point:
        """What begins with ``collected`` is deleted each time that data of a child is stored."""
        trust = HostTrust("verified", b"o" * 32)

        def trace(step: str) -> None:
            self.steps.append(step)
            if step == "data-stored" and engine.asked[-1].parent is not None:
                for name in [n for n in self.store.objects if n.startswith(collected)]:
                    self.store.delete(name)

        backup = Backup(
            Repository.open(self.store, PASSPHRASE, trust=trust),
            writer="kvm1",
            level=1,
            clock=SystemClock(),
            progress=NoProgress(),
            trace=trace,
        )
        engine = Asked(self.path, asked=self.asked)
        return backup.run(engine, CaptureRequest("web1", new_point_id()), VM).point


def test_a_backup_whose_parent_goes_meanwhile_begins_anew_without_it(tmp_path: Path) -> None:
    world = World(tmp_path / "disk")
    first = world.back_up(PACKS)
    point = world.back_up(PACKS, POINTS)
    parents = [asked.parent.id if asked.parent is not None else None for asked in world.asked]
    assert parents == [None, first.id, None]
    assert point.id == world.asked[2].point_id != world.asked[1].point_id
    assert world.steps.count("parent-gone") == 1
    assert restored(world.store, point) == world.path.read_bytes()


def test_where_the_parent_is_there_still_a_loss_is_an_error(tmp_path: Path) -> None:
    world = World(tmp_path / "disk")
    world.back_up(PACKS)
    with pytest.raises(RepositoryError):
        world.back_up(PACKS)
    assert "parent-gone" not in world.steps and len(world.asked) == 2
