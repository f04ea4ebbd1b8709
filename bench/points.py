"""What one more backup costs when many points are there already: simulated, in memory."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import product
from bench.harness import Bench, Cost, Figure, Run, by_turns, told
from drvm.backup.transfer import transfer
from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.clock import SystemClock, rfc3339
from drvm.core.extents import Extent, ExtentKind
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress
from drvm.core.units import GIB, MIB
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.repository import Repository
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.snapshot.imagefiles import machine_uuid
from drvm.store.base import ObjectInfo, Store
from drvm.store.memory import MemoryStore

POINTS = (10, 100, 1000)
MORE = 8
"""Backups of a run, one behind the other, each of other data: what is merged in the local index
once in a while falls on all of them."""
DISK_BYTES = 1 * GIB
CHANGED_BYTES = 10 * MIB
"""Of one point, side by side: what scattered changes cost an aged disk is another question. The
points are all of one machine: the worst case, since a backup reads the points of its own."""


def one_more(bench: Bench) -> list[Figure]:
    """Each run begins as a new process does: nothing in memory, its cache on disk warm."""
    store, cache = ListedStore(), bench.scratch / "cache"
    cache.mkdir()
    repository = Repository.create(store, product.PASSPHRASE, cache)
    cases: dict[str, Run] = {}
    points: list[Manifest] = []
    for count in POINTS:
        while len(points) < count:
            points.append(_point(repository, len(points), points[-1] if points else None))
        repository.refresh()  # writes what only memory knows
        shutil.copytree(cache, bench.scratch / f"warm-{count}")
        cases[str(count)] = _case(store.copy(), bench.scratch / f"cache-{count}")

    def prepare(count: str) -> None:
        shutil.rmtree(bench.scratch / f"cache-{count}", ignore_errors=True)
        shutil.copytree(bench.scratch / f"warm-{count}", bench.scratch / f"cache-{count}")

    return figures(by_turns(cases, bench.repeat, prepare))


def _case(store: ListedStore, cache: Path) -> Run:
    opened = _opened(store, cache)

    def run() -> dict[str, float]:
        list(store.list(""))  # what the fork copies of the store is not the backup's
        store.listing_s, before_s = 0.0, time.process_time()
        for number in range(MORE):
            product.take(opened, _Simulated(-1 - number), _request())
        own_s = time.process_time() - before_s
        return {"listing_s": store.listing_s / MORE, "own_s": own_s / MORE}

    return run


def figures(costs: Mapping[str, Sequence[Cost]]) -> list[Figure]:
    """The listing of packs is taken off, and told apart."""
    net_ms = {
        count: (told(runs, "own_s") - told(runs, "listing_s")) * 1000
        for count, runs in costs.items()
    }
    listing_ms = {count: told(runs, "listing_s") * 1000 for count, runs in costs.items()}
    first, *_, last = costs
    return [
        Figure(
            f"one more backup : with {last} points, of that with {first}",
            net_ms[last] / net_ms[first],
            1.2,
            note=_shown(net_ms),
        ),
        Figure("listing of packs meanwhile", listing_ms[last], None, "ms", _shown(listing_ms)),
    ]


def _shown(times_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.1f} ms at {count}" for count, value in times_ms.items())


def _request() -> CaptureRequest:
    return CaptureRequest("simulated", new_point_id())


def _opened(store: Store, cache: Path) -> Repository:
    return Repository.open(store, product.PASSPHRASE, cache)


def _point(repository: Repository, seed: int, parent: Manifest | None) -> Manifest:
    """As a backup makes it, but that it looks at no other point: a thousand take a minute."""
    source = _Disk(seed, full=parent is None)
    with repository.session(level=1) as session:
        before = repository.disk_map(parent.disks[0]) if parent is not None else None
        writer = session.disk(source.size_bytes, before)
        read_bytes = transfer(source, writer, NoProgress())
        written = session.finish()
    (root,) = written.roots
    assert root is not None
    disk = Disk(
        source.target,
        source.size_bytes,
        source.format,
        source.method,
        read_bytes=read_bytes,
        new_bytes=writer.tally.new_bytes,
        stored_bytes=writer.tally.stored_bytes,
        root=StoredBlob.of(root),
    )
    now = rfc3339(SystemClock().now())
    manifest = Manifest(
        id=new_point_id(),
        vm="simulated",
        vm_uuid=machine_uuid("simulated"),
        created=now,
        finished=now,
        consistency="offline",
        engine="simulated",
        host="bench",
        drvm_version="0",
        parent=parent.id if parent is not None else None,
        disks=(disk,),
    )
    return repository.commit(manifest).manifest


class ListedStore(MemoryStore):
    """Knows what the listings of packs and tombstones cost, in CPU seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.listing_s = 0.0

    def copy(self) -> ListedStore:
        copied = ListedStore()
        copied.objects = dict(self.objects)
        return copied

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start_s = time.thread_time()
        found = list(super().list(prefix))
        if prefix in ("packs/", "condemned/"):
            self.listing_s += time.thread_time() - start_s
        return iter(found)


class _Simulated:
    """An engine, and the one disk of its machine: full at first, then a little of it changed."""

    name = "simulated"

    def __init__(self, number: int) -> None:
        self._number = number

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        disk = _Disk(self._number, full=request.parent is None)
        yield FrozenMachine(
            name=request.vm,
            uuid=machine_uuid(request.vm),
            taken_at=SystemClock().now(),
            consistency="offline",
            engine=self.name,
            disks=(disk,),
        )


@dataclass(frozen=True)
class _Disk:
    seed: int
    full: bool
    target: str = "vda"
    size_bytes: int = DISK_BYTES
    format: str = "raw"
    method: str = "checkpoint"
    image_options: Mapping[str, str] = field(default_factory=dict)

    def extents(self) -> Iterator[Extent]:
        rest = ExtentKind.ZERO if self.full else ExtentKind.UNCHANGED
        at = random.Random(self.seed).randrange(
            BLOCK_BYTES, DISK_BYTES - CHANGED_BYTES, BLOCK_BYTES
        )
        yield Extent(0, at, rest)
        yield Extent(at, CHANGED_BYTES, ExtentKind.DATA)
        yield Extent(at + CHANGED_BYTES, DISK_BYTES - CHANGED_BYTES - at, rest)

    def open(self) -> _Reader:
        return _Reader(self.seed)


@dataclass(frozen=True)
class _Reader:
    seed: int

    def read_into(self, offset: int, target: memoryview) -> None:
        """Blocks that are nowhere else, and take no room: a thousand points stay in memory."""
        target[:] = bytes(len(target))
        for at in range(0, len(target), BLOCK_BYTES):
            target[at : at + 32] = b"%016d%016d" % (self.seed, offset + at)

    def close(self) -> None:
        pass
