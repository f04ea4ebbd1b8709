"""A repository in memory, and a short way to store and read disks in it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence

import pytest

from drvm.core.clock import rfc3339
from drvm.core.ids import new_point_id
from drvm.repository import keys
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.points import Point
from drvm.repository.reader import write_disk
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore

VM = "11111111-2222-4333-8444-555555555555"
PASSPHRASE = b"correct horse"


@pytest.fixture(autouse=True)
def cheap_key_derivation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Argon2id at 64 MiB takes a tenth of a second: not in every example of a property test."""
    monkeypatch.setattr(keys, "MEMORY_KIB", 64)
    monkeypatch.setattr(keys, "PASSES", 1)
    monkeypatch.setattr(keys, "_MEMORY_BOUNDS", range(64, 1024 * 1024))
    monkeypatch.setattr(keys, "_PASSES_BOUNDS", range(1, 17))
    yield


@dataclasses.dataclass
class Vault:
    """A repository with ``save`` and ``load`` of whole disks."""

    store: MemoryStore
    repository: Repository

    def save(
        self,
        disks: Sequence[bytes],
        parent: Point | None = None,
        *,
        step: int = 1 << 20,
        banned: frozenset[bytes] = frozenset(),
        nvram: bytes | None = None,
        own: bool = False,
        definition: bytes = b"<domain/>",
    ) -> Point:
        started = len(self.repository.points().points)
        self.repository.refresh(banned)
        with self.repository.session(level=1, banned=banned) as session:
            tallies = []
            for number, content in enumerate(disks):
                before = None
                if parent is not None and number < len(parent.manifest.disks):
                    before = self.repository.disk_map(parent.manifest.disks[number])
                disk = session.disk(len(content), before)
                for at in range(0, len(content), step):
                    disk.data(content[at : at + step])
                tallies.append(disk.tally)
            session.blob(definition)
            if nvram is not None:
                session.blob(nvram)
            written = session.finish()
        moment = rfc3339(dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=started))
        manifest = Manifest(
            id=new_point_id(),
            vm="web1",
            vm_uuid=VM,
            created=moment,
            finished=moment,
            consistency="offline",
            engine="test",
            host="here",
            drvm_version="0",
            parent=parent.id if parent else None,
            stored_bytes=written.stored_bytes,
            definition=StoredBlob.of(written.blobs[0]),
            nvram=StoredBlob.of(written.blobs[1]) if nvram is not None else None,
            disks=tuple(
                Disk(
                    f"vd{chr(97 + n)}",
                    len(content),
                    "raw",
                    "full-read",
                    len(content),
                    tallies[n].new_bytes,
                    tallies[n].stored_bytes,
                    root=StoredBlob.of(root) if root else None,
                )
                for n, (content, root) in enumerate(zip(disks, written.roots, strict=True))
            ),
        )
        return self.repository.commit(manifest, own=own)

    def load(self, point: Point) -> list[bytes]:
        disks = []
        for disk in point.manifest.disks:
            content = bytearray(disk.size_bytes)

            def put(offset: int, data: memoryview, content: bytearray = content) -> None:
                content[offset : offset + len(data)] = data

            write_disk(
                self.repository.disk_map(disk), self.repository.packs, self.repository.hasher, put
            )
            disks.append(bytes(content))
        return disks

    def reopen(self) -> Vault:
        return Vault(self.store, Repository.open(self.store, PASSPHRASE))


@pytest.fixture
def vault() -> Vault:
    return new_vault()


def new_vault(store: MemoryStore | None = None) -> Vault:
    store = store or MemoryStore()
    return Vault(store, Repository.create(store, PASSPHRASE))
