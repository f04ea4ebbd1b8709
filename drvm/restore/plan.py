"""What a restore will do, as a value: printed by ``--dry-run``, asserted by tests, then done."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drvm.core.errors import PreflightFailed, RestoreError, UsageError
from drvm.core.text import printable
from drvm.host.model import Host, Pool
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.repository import Repository
from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity, VirtType
from drvm.restore.machine.flash import rebuild_to_fit
from drvm.restore.machine.source import parse
from drvm.restore.mapping import pools_of, unused
from drvm.restore.preflight import TargetFacts, needs, problems
from drvm.restore.sysprep import sysprep_problems
from drvm.restore.target import gather, refusals
from drvm.restore.targets.block_device import device_problems, planned_device
from drvm.restore.targets.images import PlannedImage, planned_in
from drvm.restore.targets.placing import (
    by_volumes,
    disk_image,
    placing_problems,
    planned_volume,
    what_is_restored,
    with_what_they_hold,
)
from drvm.restore.targets.volume_lease import new_token, volume_name
from drvm.restore.targets.volume_leftovers import to_go_on_with

MAX_DISKS = 1024
"""libvirt names 702 of one kind by two letters."""
IdentityMode = Literal["keep", "replace", "clone"]


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """``identity``: ``keep`` the machine's own (it must be gone from the target), ``replace`` the
    one that is there, or make a ``clone`` with a new one. ``name``: ``None`` keeps the original's
    (a clone needs one). ``pools``: as ``pools_of`` takes them, the others go to ``pool``.
    ``devices``: target -> a block device of this machine, instead of a pool. ``format``: ``None``
    as the original. ``disks``: ``None`` for all. ``running``: with its memory."""

    identity: IdentityMode = "keep"
    name: str | None = None
    pool: str = "default"
    format: Literal["raw", "qcow2"] | None = None
    disks: frozenset[str] | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Path] = field(default_factory=dict)
    virt_type: VirtType | None = None
    machine: str | None = None
    cpu: str | None = None
    sysprep: tuple[str, ...] = ()
    running: bool = False


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """``room``: pool -> what may be taken of it in the end, in bytes. ``left``: files of the
    machine that is replaced; they stay where they are. ``tpm``: files of the emulated TPM's state;
    ``name``, ``uuid``: of the restored machine, which may take the place of the one with both
    (``replace``). ``nvram_pool``: the NVRAM goes there through libvirt; ``token``: in the names of
    whatever goes so; ``what``: the same for restores of the same, and ``resumed``: one of them was
    interrupted, and is gone on with. ``sysprep``: inside the images, before the machine is defined.
    ``memory``: brought back for the machine to go on from, then removed."""

    manifest: Manifest
    original_xml: str = field(repr=False)
    definition: Definition = field(repr=False)
    images: tuple[PlannedImage, ...]
    nvram: bytes | None = field(repr=False)
    nvram_path: Path | None
    tpm: Mapping[str, bytes] = field(repr=False)
    name: str
    uuid: str
    room: Mapping[str, int]
    replace: bool = False
    left: tuple[str, ...] = ()
    nvram_pool: str | None = None
    token: str = ""
    what: str = ""
    resumed: bool = False
    sysprep: tuple[str, ...] = ()
    memory: PlannedImage | None = None

    @property
    def need_bytes(self) -> int:
        return sum(self.room.values())

    @property
    def volume_pools(self) -> tuple[str, ...]:
        """Those in which volumes are made through libvirt, not as files of this machine."""
        pools = {image.pool for image in self.images} | {self.nvram_pool}
        return tuple(sorted(pool for pool in pools if pool is not None))


def plan_restore(
    repository: Repository, manifest: Manifest, host: Host, request: RestoreRequest
) -> RestorePlan:
    """Raises ``PreflightFailed`` with every problem at once; nothing is changed."""
    original_xml = read_definition(repository, manifest)
    name = _name(manifest, request)
    facts = gather(host)
    disks = chosen_disks(manifest, request.disks)
    chosen_disks(manifest, frozenset(request.devices))  # only those that there are
    goes = pools_of(original_xml, disks, request.pool, request.pools)
    each = [(disk, goes[disk.target], request.format or disk.format) for disk in disks]
    what = what_is_restored(host, name, manifest, request.pool, each)
    earlier = to_go_on_with(host, what)
    token = earlier or new_token()
    images = tuple(
        _placed(disk, facts.pools.get(goes[disk.target]), host, name, token, manifest, request)
        for disk in disks
    )
    images = with_what_they_hold(images, host) if earlier is not None else images
    nvram = repository.blob(manifest.nvram) if manifest.nvram is not None else None
    pool = facts.pools.get(request.pool)
    far = by_volumes(host, pool)
    nvram_path = _nvram_path(pool, name, token, manifest, far=far) if nvram is not None else None
    tpm = repository.tpm_state(manifest) if host.places is not None else {}
    spec = _spec(manifest, request, facts, name, images, nvram_path, tpm_state=bool(tpm))
    definition, unfit = rebuild_to_fit(host, original_xml, spec, nvram)
    memory = _memory(manifest, request, host, pool)
    beside_bytes = (len(nvram) if nvram else 0) + (memory.size_bytes if memory else 0)
    room = _room(images, goes, {request.pool: beside_bytes} if beside_bytes else {})
    replace = request.identity == "replace"
    need = needs(definition, replace=replace, room=room)
    found = [*problems(facts, need), *unfit, *refusals(host, facts, definition.xml)]
    found += placing_problems(images, pool if nvram is not None else None)
    found += device_problems(images, host, manifest.vm_uuid if replace else None)
    found += sysprep_problems(request.sysprep, images)
    found += unused(original_xml, disks, request.pools, request.networks)
    found += [] if host.remote else [f"{p} exists already" for p in _taken(images, nvram_path)]
    if found:
        who = printable(manifest.vm, 80)
        raise PreflightFailed(f"{who} can't be restored to {host.uri} like this", problems=found)
    return RestorePlan(
        manifest=manifest,
        original_xml=original_xml,
        definition=definition,
        images=images,
        nvram=nvram,
        nvram_path=nvram_path,
        tpm=tpm,
        name=name,
        uuid=spec.identity.uuid,
        room=room,
        replace=replace,
        left=_files_of(host, manifest.vm_uuid) if replace else (),
        nvram_pool=request.pool if far and nvram is not None else None,
        token=token,
        what=what,
        resumed=earlier is not None,
        sysprep=request.sysprep,
        memory=memory,
    )


def _memory(
    manifest: Manifest, request: RestoreRequest, host: Host, pool: Pool | None
) -> PlannedImage | None:
    """Made in the pool's directory. Raises ``UsageError`` where it can't be brought back."""
    if not request.running:
        return None
    if manifest.memory is None:
        raise UsageError(
            f"point {manifest.id} holds no memory",
            hint="--start boots it; drvm backup --memory takes points that go on running",
        )
    if host.remote or by_volumes(host, pool):
        raise UsageError(
            "memory is brought back only by drvm on the KVM host itself, into a pool of files",
            hint="run it there, with the same repository; from here, --start boots the machine",
        )
    directory = Path(pool.path if pool is not None else "/")
    return PlannedImage(
        manifest.memory,
        directory / f"{manifest.id}.memory",
        "raw",
        (manifest.vm_uuid, manifest.id),
    )


def _room(
    images: tuple[PlannedImage, ...], goes: Mapping[str, str], beside: Mapping[str, int]
) -> dict[str, int]:
    room = dict(beside)
    for image in (one for one in images if not one.device):
        place = goes[image.disk.target]
        still = max(0, image.size_bytes - image.on_hand_bytes)
        room[place] = room.get(place, 0) + still
    return room


def _spec(
    manifest: Manifest,
    request: RestoreRequest,
    facts: TargetFacts,
    name: str,
    images: tuple[PlannedImage, ...],
    nvram_path: Path | None,
    *,
    tpm_state: bool,
) -> DefinitionSpec:
    return DefinitionSpec(
        identity=_identity(manifest, request, name),
        disks={image.disk.target: disk_image(image) for image in images},
        networks=request.networks,
        nvram_path=str(nvram_path) if nvram_path is not None else None,
        tpm_state=tpm_state,
        virt_type=request.virt_type,
        machine=request.machine,
        cpu=request.cpu,
        taken_macs=frozenset(mac for domain in facts.domains for mac in domain.macs),
    )


def plan_folder(
    manifest: Manifest, directory: Path, disks: frozenset[str] | None, image_format: str | None
) -> tuple[PlannedImage, ...]:
    """The images of a restore without any hypervisor: ``DIR/<target>.<format>``."""
    if os.path.lexists(directory) and not directory.is_dir():
        raise UsageError(f"{directory} is no folder", hint="name another by --output")
    images = tuple(
        planned_in(directory, disk, manifest, image_format)
        for disk in chosen_disks(manifest, disks)
    )
    found = [f"{path} exists already: choose another folder" for path in _taken(images, None)]
    if found:
        who = printable(manifest.vm, 80)
        raise PreflightFailed(f"{who} can't be restored to {directory}", problems=found)
    return images


def read_definition(repository: Repository, manifest: Manifest) -> str:
    """The domain XML as it was captured; hostile, and it may hold passwords."""
    if manifest.definition is None:
        raise UsageError(
            f"point {manifest.id} is of image files without a VM",
            hint="restore it to a folder: drvm restore POINT --output DIR",
        )
    try:
        return repository.blob(manifest.definition).decode()
    except UnicodeDecodeError:
        raise RestoreError("the domain XML of the point is not text") from None


def chosen_disks(manifest: Manifest, wanted: frozenset[str] | None) -> tuple[Disk, ...]:
    """Raises ``UsageError`` for a disk that is not there, ``RestoreError`` for more disks than any
    machine has."""
    if wanted is None:
        if len(manifest.disks) > MAX_DISKS:
            raise RestoreError(
                f"point {manifest.id} has {len(manifest.disks)} disks, and no machine has more "
                f"than {MAX_DISKS}",
                hint="choose some of them by --disk, or take another point",
            )
        return manifest.disks
    there = {disk.target for disk in manifest.disks}
    if missing := sorted(wanted - there):
        raise UsageError(
            f"point {manifest.id} has no disk {', '.join(missing)}",
            hint=f"it has {', '.join(sorted(there))}",
        )
    return tuple(disk for disk in manifest.disks if disk.target in wanted)


def _name(manifest: Manifest, request: RestoreRequest) -> str:
    if request.identity == "clone" and request.name is None:
        raise UsageError("a clone needs a name of its own", hint="add --name NEWNAME")
    return request.name or manifest.vm


def _identity(manifest: Manifest, request: RestoreRequest, name: str) -> Identity:
    if request.identity == "clone":
        return Identity(name, str(uuid.uuid4()), keep_macs=False)
    return Identity(name, manifest.vm_uuid, keep_macs=True)


def _placed(
    disk: Disk,
    pool: Pool | None,
    host: Host,
    name: str,
    token: str,
    manifest: Manifest,
    request: RestoreRequest,
) -> PlannedImage:
    """``pool``: ``None`` for one that is not there, which the preflight tells."""
    if (device := request.devices.get(disk.target)) is not None:
        return planned_device(disk, device, manifest)
    if pool is not None and by_volumes(host, pool):
        return planned_volume(disk, pool, name, token, manifest, request.format)
    kind = request.format or disk.format
    directory = _directory(pool)
    begins = f"{name}-{disk.target}"
    path = _free(directory, (begins, f"{begins}-{manifest.id}"), token, f".{kind}")
    return PlannedImage(disk, path, kind, (manifest.vm_uuid, manifest.id))


def _nvram_path(pool: Pool | None, name: str, token: str, manifest: Manifest, *, far: bool) -> Path:
    if far:
        return _directory(pool) / volume_name(name, "nvram", token, "fd")
    return _free(_directory(pool), (f"{name}-{manifest.id}",), token, "-nvram.fd")


def _free(directory: Path, begins: tuple[str, ...], token: str, ending: str) -> Path:
    """The first of the names that nothing has. The last resort is unique: neither a machine that
    was restored from the same point, nor what a killed restore left, stands in the way."""
    names = (*begins, f"{begins[-1]}-{token}")
    paths = [directory / f"{name}{ending}" for name in names]
    return next((path for path in paths if not os.path.lexists(path)), paths[-1])


def _directory(pool: Pool | None) -> Path:
    return Path(pool.path) if pool is not None else Path("/nonexistent")


def _taken(images: tuple[PlannedImage, ...], nvram_path: Path | None) -> list[Path]:
    paths = [image.path for image in images if image.is_file] + (
        [nvram_path] if nvram_path is not None else []
    )
    return [path for path in paths if os.path.lexists(path)]


def _files_of(host: Host, vm_uuid: str) -> tuple[str, ...]:
    domain = host.find_domain(vm_uuid)
    if domain is None:
        return ()
    tree = parse(domain.xml(inactive=True))
    sources = tree.iterfind("devices/disk[@device='disk']/source[@file]")
    named = [source.get("file", "") for source in sources]
    named += [nvram] if (nvram := (tree.findtext("os/nvram") or "").strip()) else []
    if host.places is not None:
        named.append(str(host.places.nvram / f"{domain.name}_VARS.fd"))
    return tuple(dict.fromkeys(path for path in named if host.remote or Path(path).is_file()))
