"""What drvm must never do, done by a store: so that the trials are known to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from drvm.repository.layout import INDEX
from drvm.store.base import ObjectInfo
from drvm.store.memory import MemoryStore
from tests.hostile.case import Case, harmless
from tests.hostile.forge import Forge


class _Doing(MemoryStore):
    """Does something when index objects are listed."""

    def __init__(self, inner: MemoryStore, work: Callable[[], object]) -> None:
        super().__init__()
        self.objects = inner.objects
        self._work = work

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix == INDEX:
            self._work()
        return super().list(prefix)


def doing(work: Callable[[], object]) -> Case:
    def plant(forge: Forge) -> None:
        forge.store = _Doing(forge.store, work)

    return harmless(plant)


def fail() -> None:
    raise KeyError("surprise")


CASES: dict[str, Case] = {
    "a bug": doing(fail),
    "a file elsewhere": doing(lambda: Path("elsewhere").write_text("x")),
    "a file that was changed": doing(lambda: Path("precious").write_text("x")),
    "a link in the target": doing(lambda: Path("target/link").symlink_to("/etc")),
    "memory without a bound": doing(lambda: bytes(8 << 30)),
}
