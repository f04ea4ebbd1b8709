"""The forms of restoring that every hostile point is put through. A new form is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

from msgspec import structs

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError, RestoreError
from drvm.core.extents import ExtentKind
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.core.units import GIB, MIB
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.plan import DrillRequest, plan_drill
from drvm.drill.room import Room
from drvm.host.images import ImageTool
from drvm.host.model import Host
from drvm.host.places import StatePlaces
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore import claims
from drvm.restore.export.plan import plan_export
from drvm.restore.export.run import Exporter
from drvm.restore.guestfiles.appliance import Appliance, FileProblem
from drvm.restore.guestfiles.fetch import plan_fetch, run_fetch
from drvm.restore.guestfiles.names import parse_place
from drvm.restore.guestfiles.view import GuestFiles
from drvm.restore.instant.definition import over_export, unfinished
from drvm.restore.instant.start import plan_boot
from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity
from drvm.restore.machine.difference import difference
from drvm.restore.machine.source import parse
from drvm.restore.plan import (
    RestorePlan,
    RestoreRequest,
    chosen_disks,
    plan_folder,
    plan_restore,
)
from drvm.restore.rollback.plan import plan_rollback
from drvm.restore.rollback.run import make_ready, turn_back
from drvm.restore.run import run_folder, run_restore
from drvm.restore.served.disk import ServedDisk
from drvm.restore.served.frames import Frames
from drvm.restore.served.patience import Patience
from drvm.restore.targets import volume_lease
from drvm.restore.targets.images import ImageRestorer, PlannedImage
from drvm.restore.targets.placing import disk_image
from drvm.restore.targets.volumes import VolumeRestorer
from drvm.snapshot import journal
from drvm.snapshot.parts import Parts
from tests.fakes.file_storage import FileStorage
from tests.fakes.target_host import TargetHost
from tests.fakes.tree_appliance import TreeAppliance
from tests.unit.restore.machines import assert_harmless
from tests.unit.restore.rollback.conftest import PlacedHost, WholeDomain

_SOCKET = Path("/ours/front.sock")
_ROOM = Room(1 << 60, None, ())
_ANSWERS = 16


@dataclass(frozen=True)
class Ground:
    """``directory``: does not exist yet, and all that a form makes lies below it. ``show``: takes
    what people would see."""

    repository: Repository
    manifest: Manifest
    directory: Path
    show: Callable[[str], None]

    @property
    def restorer(self) -> ImageRestorer:
        return ImageRestorer(self.repository, SystemProcesses(), SystemClock())


def folder(ground: Ground) -> None:
    images = plan_folder(ground.manifest, ground.directory, None, None)
    run_folder(
        ground.repository,
        ground.manifest,
        images,
        ground.directory,
        ground.restorer,
        NoProgress(),
    )


def machine(ground: Ground, identity: Literal["keep", "clone"] = "keep") -> None:
    """On a host that takes every definition: what comes to it must be harmless."""
    name = "a-clone" if identity == "clone" else None
    _restored(ground, TargetHost(ground.directory), RestoreRequest(identity=identity, name=name))


def _restored(ground: Ground, target: TargetHost, request: RestoreRequest) -> None:
    host: Host = target  # type: ignore[assignment]
    with (
        mock.patch.object(claims, "shared_directory", lambda: None),
        mock.patch.object(volume_lease, "shared_directory", lambda: None),
    ):
        plan = plan_restore(ground.repository, ground.manifest, host, request)
        _judged(ground, plan.definition, plan.images, _identity(plan), _nvram(plan))
        ground.show(difference(plan.original_xml, plan.definition.xml))
        nothing: Any = None
        volumes = VolumeRestorer(ground.repository, target.volumes, SystemClock())
        run_restore(
            plan,
            host,
            ground.restorer,
            NoProgress(),
            start=False,
            volumes=volumes if target.remote else nothing,
            devices=nothing,
        )
    (made,) = target.machines.values()
    assert made == plan.definition.xml
    assert all(path.parent == target.pool_path for path in _files(plan))
    there = {path.name for path in target.pool_path.iterdir()}
    assert there == {path.name for path in _files(plan)}, "and nothing beside them"


def volumes(ground: Ground) -> None:
    """On another machine, by its libvirt alone."""
    target = TargetHost(ground.directory, uri="qemu+tcp://there/system", remote=True)
    target.volumes = FileStorage(target.pool_path)
    _restored(ground, target, RestoreRequest())


def running(ground: Ground) -> None:
    """With its first disk for the memory."""
    disks = ground.manifest.disks
    memory = structs.replace(disks[0], target="memory") if disks else None
    manifest = structs.replace(ground.manifest, memory=memory)
    target = TargetHost(ground.directory)
    _restored(replace(ground, manifest=manifest), target, RestoreRequest(running=True))
    assert memory is not None and target.brought_back == -(-memory.size_bytes // 512) * 512


def clone(ground: Ground) -> None:
    machine(ground, "clone")


def drill(ground: Ground) -> None:
    """As far as its plan: what is restored then is what the others restore."""
    target: Host = TargetHost(ground.directory)  # type: ignore[assignment]
    request = DrillRequest(ground.manifest, (AgentCheck(),), directory=ground.directory)
    plan = plan_drill(ground.repository, target, request, SystemClock(), lambda _: _ROOM)
    who = Identity(plan.name, plan.definition.xml.split("<uuid>")[1][:36], keep_macs=True)
    _judged(ground, plan.definition, plan.images, who, str(plan.nvram_path))


def boot(ground: Ground) -> None:
    """As far as the definition over the export of its disks."""
    host: Host = TargetHost(ground.directory)  # type: ignore[assignment]
    request = RestoreRequest(identity="clone", name="a-boot")
    plan = plan_boot(ground.repository, ground.manifest, host, request)
    _judged(ground, plan.definition, plan.images, _identity(plan), _nvram(plan))
    targets = {image.disk.target for image in plan.images}
    xml = over_export(plan.definition.xml, _SOCKET, targets)
    assert unfinished(xml, _SOCKET) == targets
    for source in parse(xml).iter("source"):
        assert source.get("protocol", "nbd") == "nbd"
        assert source.get("name") in {None, *targets}


def export(ground: Ground) -> None:
    plan = plan_export(ground.repository, ground.manifest, ground.directory, "vmdk")
    exporter = Exporter(ground.repository, ground.restorer, SystemProcesses(), SystemClock())
    exporter.run(plan, NoProgress())
    for path in (plan.ovf, plan.readme):
        if path.exists():
            ground.show(path.read_text())


def in_place(ground: Ground) -> None:
    """Into raw images of a machine of that UUID that is off, each of the size that the point
    claims, if that is no larger than a gibibyte."""
    ground.directory.mkdir(parents=True)
    chains: dict[str, list[str]] = {}
    for disk in ground.manifest.disks:
        path = ground.directory / f"{disk.target}.raw"
        path.touch()
        os.truncate(path, -(-disk.size_bytes // 512) * 512 if disk.size_bytes <= GIB else MIB)
        chains[disk.target] = [str(path)]
    nvram = ground.directory / "VARS.fd"
    nvram.write_bytes(b"variables")
    domain = WholeDomain("web1", ground.manifest.vm_uuid, chains, running=False, nvram=nvram)
    host = PlacedHost(domain)
    host.places = StatePlaces(ground.directory, ground.directory / "tpm", ground.directory)
    host.places.tpm.mkdir()
    processes = SystemProcesses()
    with mock.patch.object(journal, "shared_directory", lambda: None):
        parts = Parts(
            host=cast(Host, host),
            images=ImageTool(processes),
            processes=processes,
            journal=journal.Journal(ground.directory / "state"),
            clock=SystemClock(),
        )
        try:
            plan = plan_rollback(ground.repository, ground.manifest, parts, None)
            for line in plan.warnings:
                ground.show(line)
            guard = make_ready(plan, parts)
            done = turn_back(plan, parts, ground.restorer, guard, None, NoProgress())
        except DrvmError:
            shutil.rmtree(ground.directory)  # the machine was there before, and so it would stay
            raise
    assert {disk.path.parent for disk in done.disks} <= {ground.directory}


@contextlib.contextmanager
def _served(ground: Ground) -> Iterator[dict[str, ServedDisk]]:
    """What the NBD server has of the point, in this process."""
    repository, patience = ground.repository, Patience(SystemClock(), 0, lambda _: None)
    frames = Frames(repository.packs, repository.hasher, patience)
    tools = frames, repository.hasher, repository.tables, patience
    with contextlib.closing(frames):
        disks = chosen_disks(ground.manifest, None)
        yield {d.target: ServedDisk(repository.disk_map(d), *tools) for d in disks}


def serve(ground: Ground) -> None:
    """As a client does that copies what the extents say is there: some of each disk."""
    with _served(ground) as disks:
        for disk in disks.values():
            at = 0
            for _ in range(_ANSWERS):
                for extent in disk.extents(at, disk.size_bytes - at)[:_ANSWERS]:
                    assert extent.offset == at and 0 < extent.length <= disk.size_bytes - at
                    data = bytearray(b"?" * min(extent.length, MIB))
                    disk.read_into(at, memoryview(data))
                    assert extent.kind is ExtentKind.DATA or not any(data)
                    at = extent.end
                if at == disk.size_bytes:
                    break
            last = bytearray(min(disk.size_bytes, MIB))
            disk.read_into(disk.size_bytes - len(last), memoryview(last))


class _OneFile(TreeAppliance):
    """Whose one file system has a file that is the beginning of each disk; what can't be read of
    it is an error of the guest's kernel."""

    def __init__(self, disks: dict[str, ServedDisk]) -> None:
        super().__init__()
        self._disks = {
            f"/disk{number}".encode(): disk for number, disk in enumerate(disks.values())
        }
        for path, disk in self._disks.items():
            self.file(path, b"", size_bytes=min(disk.size_bytes, MIB))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        data = bytearray(min(length, MIB - offset))
        try:
            self._disks[path].read_into(offset, memoryview(data))
        except DrvmError as error:
            raise FileProblem(f"pread: {error.message}", errno.EIO) from None
        return bytes(data)


def files(ground: Ground) -> None:
    """Out of a file system that lies on the point's disks, in an appliance that is honest."""
    with _served(ground) as disks:
        guest = GuestFiles(cast(Appliance, _OneFile(disks)), tuple(disks))
        for system in guest.found().file_systems:
            ground.show(system.device)
        plan = plan_fetch(guest, [parse_place(b"/")], ground.directory)
        fetched = run_fetch(plan, guest, NoProgress())
    for line in (*plan.left_out, *fetched.failed, *guest.problems):
        ground.show(line)
    if fetched.failed:
        raise RestoreError(fetched.failed[0])


FORMS: dict[str, Callable[[Ground], None]] = {
    "folder": folder,
    "machine": machine,
    "clone": clone,
    "drill": drill,
    "boot": boot,
    "export": export,
    "in place": in_place,
    "volumes": volumes,
    "running": running,
    "serve": serve,
    "files": files,
}


def _judged(
    ground: Ground,
    definition: Definition,
    images: tuple[PlannedImage, ...],
    identity: Identity,
    nvram: str | None,
) -> None:
    disks = {image.disk.target: disk_image(image) for image in images}
    assert_harmless(definition, DefinitionSpec(identity, disks, nvram_path=nvram))
    for line in (*definition.dropped, *definition.changed):
        ground.show(line)


def _identity(plan: RestorePlan) -> Identity:
    return Identity(plan.name, plan.uuid, keep_macs=True)


def _nvram(plan: RestorePlan) -> str | None:
    return str(plan.nvram_path) if plan.nvram_path is not None else None


def _files(plan: RestorePlan) -> list[Path]:
    nvram = [plan.nvram_path] if plan.nvram_path is not None else []
    return [image.path for image in plan.images] + nvram
