"""A store that hangs stops the reading, and takes no more memory than is told."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from drvm.backup.transfer import transfer
from drvm.core.clock import SystemClock
from drvm.core.extents import Extent, ExtentKind
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.repository.repository import Repository
from drvm.store.base import Store
from tests.small import HangingStore
from tests.unit.repository.conftest import cheap_key_derivation

__all__ = ["cheap_key_derivation"]

SIZE_BYTES = 384 * MIB
BOUND_BYTES = 208 * MIB
"""Read ahead 16 MiB, a pack that fills, three that wait or are sent, and what is in between."""


@dataclass
class Endless:
    """A disk of noise that is nowhere: every MiB another one. Read at most 4 MiB at a time."""

    size_bytes: int = SIZE_BYTES
    target: str = "vda"
    format: str = "raw"
    method: str = "full-read"
    image_options: dict[str, str] = field(default_factory=dict)
    read_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _noise: bytes = field(default_factory=lambda: random.Random(1).randbytes(5 * MIB))

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size_bytes, ExtentKind.DATA)

    def open(self) -> Endless:
        return self

    def read_into(self, offset: int, target: memoryview) -> None:
        with self._lock:
            self.read_bytes += len(target)
        # blocks of 4096 bytes differ, wherever they begin in the noise
        start = (offset // MIB) * 1031 % MIB
        target[:] = self._noise[start : start + len(target)]

    def close(self) -> None:
        """Nothing to close."""


def test_while_a_store_hangs_only_so_much_is_read_ahead(tmp_path: Path) -> None:
    store = HangingStore()
    repository = Repository.create(cast(Store, store), b"passphrase", tmp_path)
    repository.refresh()
    disk, clock = Endless(), SystemClock()

    def back_up() -> None:
        with repository.session(level=1) as session:
            transfer(disk, session.disk(disk.size_bytes, None), NoProgress())
            session.finish()

    thread = threading.Thread(target=back_up)
    with contextlib.ExitStack() as released:
        released.callback(thread.join, 120)
        released.enter_context(store.hanging())
        thread.start()
        assert store.hung.wait(60)
        read_bytes = -1
        while read_bytes != disk.read_bytes:
            read_bytes = disk.read_bytes
            clock.sleep(0.5)
        assert 0 < read_bytes < BOUND_BYTES < SIZE_BYTES
    assert disk.read_bytes == SIZE_BYTES
