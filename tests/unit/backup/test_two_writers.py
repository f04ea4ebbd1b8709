"""Two hosts that back up one machine in the same moment harm nothing: both points are whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.repository.trust import HostTrust
from drvm.snapshot.capture import CaptureRequest
from drvm.store.memory import MemoryStore
from tests.unit.backup.test_foreign_parent import SIZE, HintingEngine, backed_up, restored
from tests.unit.repository.conftest import PASSPHRASE, VM, cheap_key_derivation

__all__ = ["cheap_key_derivation"]

LIMIT_S = 60.0


@pytest.mark.parametrize("meeting", ["data-stored", "manifest-created", "packs-checked"])
def test_both_points_of_two_backups_at_once_restore(tmp_path: Path, meeting: str) -> None:
    """``meeting``: the step at which each waits for the other."""
    store = MemoryStore()
    Repository.create(store, PASSPHRASE)
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    first = backed_up(store, path, b"1" * 32)
    path.write_bytes(os.urandom(SIZE // 2) + path.read_bytes()[SIZE // 2 :])
    both = threading.Barrier(2, timeout=LIMIT_S)
    points: list[Point] = []

    def back_up(writer: str, key: bytes) -> None:
        backup = Backup(
            Repository.open(store, PASSPHRASE, trust=HostTrust("own", key)),
            writer=writer,
            level=1,
            clock=SystemClock(),
            progress=NoProgress(),
            trace=lambda step: both.wait() and None if step == meeting else None,
        )
        request = CaptureRequest("web1", new_point_id())
        points.append(backup.run(HintingEngine(path), request, VM).point)

    threads = [
        threading.Thread(target=back_up, args=(writer, key * 32))
        for writer, key in (("kvm2", b"2"), ("kvm3", b"3"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    listed = Repository.open(store, PASSPHRASE).points()
    assert {point.id for point in listed.points} == {first.id, *(point.id for point in points)}
    assert len(points) == 2 and listed.problems == ()
    assert {point.manifest.host for point in points} == {"kvm2", "kvm3"}
    for point in points:
        assert restored(store, point) == path.read_bytes()
