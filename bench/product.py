"""drvm as the measurements use it: in this process, or as a user's command."""

from __future__ import annotations

import shutil
from functools import partialmethod
from pathlib import Path

from drvm.backup.run import Backup
from drvm.chunker.blocks import Buffer
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, no_trace
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore.targets.images import ImageRestorer, PlannedImage
from drvm.snapshot.capture import CaptureRequest, Engine
from drvm.snapshot.imagefiles import ImageFile, ImageFilesEngine, machine_uuid
from drvm.store.base import Store
from drvm.store.directory import DirectoryStore
from drvm.store.memory import MemoryStore
from tests.appliance import Appliance, make_appliance

PASSPHRASE = b"a passphrase of the measurements"
_KEPT_BYTES = 4 * MIB

_processes = SystemProcesses()
_clock = SystemClock()


class NullStore(MemoryStore):
    """Discards data packs (whatever is large), and keeps what a commit reads again."""

    def put(self, name: str, data: Buffer) -> None:
        super().put(name, data if len(data) <= _KEPT_BYTES else b"")


def in_directory(directory: Path) -> Repository:
    """A new repository in that directory; what was there is removed. Its cache is beside it."""
    _remove(directory)
    _remove(cache_of(directory))
    return Repository.create(DirectoryStore.create(directory), PASSPHRASE, cache_of(directory))


def cache_of(directory: Path) -> Path:
    return directory.with_name(directory.name + ".cache")


def back_up(repository: Repository, image: Path, name: str, form: str = "raw") -> Manifest:
    """A point of one image, as ``drvm backup --image`` takes it."""
    engine = ImageFilesEngine(
        ImageTool(_processes), _processes, _clock, [ImageFile(image, form)], no_trace
    )
    return take(repository, engine, CaptureRequest(vm=name, point_id=new_point_id()))


def take(repository: Repository, engine: Engine, request: CaptureRequest) -> Manifest:
    """A point of what the engine captures."""
    backup = Backup(
        repository,
        writer="bench",
        level=1,
        clock=_clock,
        progress=NoProgress(),
        trace=no_trace,
    )
    return backup.run(engine, request, machine_uuid(request.vm)).point.manifest


def restore(repository: Repository, manifest: Manifest, image: Path) -> int:
    """Its only disk to a new sparse raw file; returns the bytes written."""
    (disk,) = manifest.disks
    restorer = ImageRestorer(repository, _processes, _clock)
    return restorer.restore(PlannedImage(disk, image, "raw"), NoProgress())


def without_verification() -> None:
    """From now on, backups of this process upload frames as they were compressed and sealed. Not
    for users: it is here to tell what the verification costs."""
    Repository.session = partialmethod(Repository.session, verify=False)  # type: ignore[assignment]


def stored_bytes(store: Store) -> int:
    return sum(info.size_bytes for info in store.list(""))


def appliance(directory: Path) -> Appliance:
    """drvm's command with a new, initialised repository in a directory."""
    _remove(directory)
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    return made


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
