"""What a drill will do, as a value: printed by ``--dry-run``, asserted by tests, then done."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from drvm.core.clock import Clock, parse_rfc3339
from drvm.core.errors import DamageFound, HostError, PreflightFailed, UsageError
from drvm.core.ids import new_point_id
from drvm.core.text import printable
from drvm.core.units import MIB
from drvm.drill import room as rooms
from drvm.drill.checks.base import Card, Check
from drvm.drill.console import with_console
from drvm.drill.place import DEFAULT_DIRECTORY, Volumes, drill_name, drill_uuid
from drvm.drill.room import Room
from drvm.drill.taken import alone, storage_of
from drvm.drill.ways import cards_of, needed, way_problems
from drvm.host.model import Host, Pool
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.repository.window import stored_bytes
from drvm.restore.instant.definition import over_export
from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity, VirtType
from drvm.restore.machine.flash import rebuild_to_fit
from drvm.restore.machine.source import memory_bytes, parse
from drvm.restore.plan import chosen_disks, read_definition
from drvm.restore.preflight import needs, problems
from drvm.restore.target import gather
from drvm.restore.targets.images import PlannedImage, planned_in
from drvm.restore.targets.placing import FILE_POOLS, disk_image, planned_volume
from drvm.restore.targets.volume_lease import new_token, volume_name

DEFAULT_NOTES = Path("/var/lib/drvm/drills")
DEFAULT_BOOT_TIMEOUT_S = 300.0
MAX_CHECKS = 100
BOOT_WRITES_BYTES = 256 * MIB
"""What a guest that is booted over the repository may write to each disk until it is checked: an
estimate, as nothing else is written."""

_MAX_SOCKET_BYTES = 107
_SHOWN_POOLS = 8
_HERE_ONLY = frozenset({"network", "console"})
_UNKNOWN_BYTES = 1 << 62
"""Of a pool that is not there, which is a problem of its own."""

Method = Literal["restore", "boot"]


@dataclass(frozen=True, slots=True)
class DrillRequest:
    """``boot_timeout_s``: how long the guest may take until it first answers. ``directory``: where
    its images go while it runs: on this machine, or, on another host, that of one of its pools.
    ``method``: ``restore`` writes them whole first, ``boot`` lays them over the repository.
    ``notes``: on this machine, where a drill on another host is known by. ``virt_type``: ``qemu``
    where the host has no KVM; ``None`` keeps the original's."""

    point: Manifest
    checks: tuple[Check, ...]
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S
    rto_target_s: float | None = None
    rpo_target_s: float | None = None
    directory: Path = DEFAULT_DIRECTORY
    virt_type: VirtType | None = None
    method: Method = "restore"
    notes: Path = DEFAULT_NOTES


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """``name``: of the machine and the last part of ``directory``, which is on this machine. The
    definition may hold secrets: show it redacted.

    ``uri``: its host. ``network``: the machine's own where it has the drill's name, else its
    group's; ``None`` for a machine without a network card. ``console``: where its serial console
    is logged to. ``not_made``: the checks that can't be made on that host. ``volumes``: its images
    are volumes of another host. ``socket``: where the server of its disks listens, for one that
    runs over the repository. ``emulated``: the original ran on KVM and the drill will not.
    ``data_bytes``: what will be written to the images. ``created``: the instant that the point
    shows. ``started``, ``plan_s``: when the planning began, and how long it took.
    """

    id: str
    name: str
    directory: Path
    request: DrillRequest
    network: str | None
    cards: tuple[Card, ...]
    console: Path | None
    checks: tuple[Check, ...]
    not_made: tuple[Check, ...]
    images: tuple[PlannedImage, ...]
    definition: Definition = field(repr=False)
    nvram: bytes | None = field(repr=False)
    nvram_path: Path
    tpm: Mapping[str, bytes] = field(repr=False)
    emulated: bool
    data_bytes: int
    memory_bytes: int
    host: str
    created: dt.datetime
    started: dt.datetime
    plan_s: float
    uri: str
    volumes: Volumes | None = None
    socket: Path | None = None

    @property
    def dropped(self) -> tuple[str, ...]:
        return self.definition.dropped

    @property
    def vm(self) -> str:
        return self.request.point.vm


Look = Callable[[Path], Room]


def plan_drill(
    repository: Repository,
    host: Host,
    request: DrillRequest,
    clock: Clock,
    look: Look = rooms.look,
) -> DrillPlan:
    """Raises ``PreflightFailed`` with every problem at once, ``RestoreError`` for a point that no
    machine can be made of, ``UsageError``; nothing is changed.

    The machine gets a name and UUID of its own, as libvirt can't hold the original's twice; MACs,
    disks and all other hardware are the original's.
    """
    plan, found = plan_machine(repository, host, request, clock)
    found += room_problems(host, [plan], look, clock)
    if found:
        raise PreflightFailed(f"{plan.vm} can't be drilled on {host.uri}", problems=found)
    return plan


def plan_machine(
    repository: Repository,
    host: Host,
    request: DrillRequest,
    clock: Clock,
    network: str | None = None,
) -> tuple[DrillPlan, list[str]]:
    """The plan, and what stands in its way but for want of room. ``network``: of its group."""
    check_request(request)
    started, started_s = clock.now(), clock.monotonic_s()
    drill_id = new_point_id()
    name = drill_name(drill_id)
    point = request.point
    directory = (request.notes if host.remote else request.directory) / name
    volumes, found = _volumes_at(host, request) if host.remote else (None, [])
    found += [] if point.disks else [f"point {point.id} has no disks"]
    checks, not_made = _makeable(request.checks, away=host.remote)
    found += [] if checks else [f"none of its checks can be made on {host.uri}: ask for its agent"]
    images, nvram_path = _placed(request, name, directory, volumes)
    original_xml = read_definition(repository, point)
    tpm = repository.tpm_state(point) if host.places is not None else {}
    spec = _spec(request, name, network or name, images, nvram_path, tpm_state=bool(tpm))
    nvram = repository.blob(point.nvram) if point.nvram is not None else None
    definition, unfit = rebuild_to_fit(host, original_xml, spec, nvram)
    need = needs(definition, replace=False, transient_network=network or name)
    found += [*problems(gather(host), need), *unfit]
    found += way_problems(host, checks, has_card=bool(definition.networks), away=host.remote)
    definition, console = with_console(definition, directory, checks)
    socket = directory / "nbd" if request.method == "boot" else None
    if socket is not None:
        found += _socket_problems(socket)
        targets = [image.disk.target for image in images]
        definition = replace(definition, xml=over_export(definition.xml, socket, targets))
    plan = DrillPlan(
        id=drill_id,
        name=name,
        directory=directory,
        request=request,
        network=(network or name) if definition.networks else None,
        cards=cards_of(definition.xml, point.guest),
        console=console,
        checks=checks,
        not_made=not_made,
        images=images,
        definition=definition,
        nvram=nvram,
        nvram_path=nvram_path,
        tpm=tpm,
        emulated=_kinds(original_xml, definition.xml) == ("kvm", "qemu"),
        data_bytes=_data_bytes(repository, request),
        memory_bytes=memory_bytes(parse(definition.xml)),
        host=host.hostname(),
        created=_created(point),
        started=started,
        plan_s=clock.monotonic_s() - started_s,
        uri=host.uri,
        volumes=volumes,
        socket=socket,
    )
    return plan, found


def network_xml(name: str) -> str:
    """Neither ``<forward>`` nor ``<ip>``: nobody else is on the wire, the host included, and
    there is no DHCP. libvirt chooses the bridge (their names have 15 characters at most).
    https://libvirt.org/formatnetwork.html"""
    return f"<network><name>{name}</name></network>"


def _spec(
    request: DrillRequest,
    name: str,
    network: str,
    images: tuple[PlannedImage, ...],
    nvram_path: Path,
    *,
    tpm_state: bool,
) -> DefinitionSpec:
    """With a path for the NVRAM in any case: an empty one too must lie where it is removed."""
    return DefinitionSpec(
        identity=Identity(name, drill_uuid(name), keep_macs=True),
        disks={image.disk.target: disk_image(image) for image in images},
        isolate_to=f"network:{network}",
        nvram_path=str(nvram_path),
        tpm_state=tpm_state,
        virt_type=request.virt_type,
    )


def room_problems(host: Host, plans: Sequence[DrillPlan], look: Look, clock: Clock) -> list[str]:
    """Of machines that run at once, on one host; what other drills have they give back. Raises
    ``HostError``."""
    first = plans[0]
    data = sum(plan.data_bytes for plan in plans)
    memory = sum(plan.memory_bytes for plan in plans)
    try:
        storage, whose = claims_of(host, first)
        room = alone(room_of(host, first, look), clock, storage=storage, host=whose)
    except OSError as problem:
        raise HostError(f"what running drills have taken can't be read: {problem}") from None
    directory = first.request.directory
    return list(rooms.problems(room, directory, data_bytes=data, memory_bytes=memory))


def claims_of(host: Host, plan: DrillPlan) -> tuple[str, str]:
    """Which room its images take, and whose memory: as ``Taken`` has them."""
    if plan.volumes is not None:
        return f"{host.uri} {plan.volumes.pool}", host.uri
    return storage_of(plan.directory), ""


def room_of(host: Host, plan: DrillPlan, look: Look) -> Room:
    """Where the images of a drill go, now. Raises ``HostError``."""
    if plan.volumes is not None:
        if plan.volumes.pool:
            host.storage.names(
                plan.volumes.pool
            )  # libvirt looks anew: it knows the room since then
        pools = {pool.name: pool for pool in host.pools()}
        pool = pools.get(plan.volumes.pool)
        free_bytes = pool.available_bytes if pool is not None else _UNKNOWN_BYTES
        return Room(free_bytes, host.available_memory_bytes(), ())
    directory = plan.request.directory
    try:
        return look(directory)
    except OSError as problem:
        raise HostError(f"{directory} can't be looked at: {problem.strerror}") from None


def check_request(request: DrillRequest) -> None:
    if not request.directory.is_absolute():
        raise UsageError(f"the directory for drills, {request.directory}, is not absolute")
    if not request.checks:
        raise UsageError(
            "a drill without any check proves nothing", hint="ask at least for the agent's answer"
        )
    if len(request.checks) > MAX_CHECKS:
        raise UsageError(f"a drill can have {MAX_CHECKS} checks, not {len(request.checks)}")


def _makeable(
    checks: Sequence[Check], *, away: bool
) -> tuple[tuple[Check, ...], tuple[Check, ...]]:
    """Those that can be made where the machine runs, and those that can't, as it is out of reach
    from here: neither its network nor what it writes to its console is."""
    out = [check for check in checks if away and needed([check]) & _HERE_ONLY]
    return tuple(check for check in checks if check not in out), tuple(out)


def _volumes_at(host: Host, request: DrillRequest) -> tuple[Volumes, list[str]]:
    """The pool of another host that has the drills' directory, and what is wrong with it."""
    pools = [pool for pool in host.pools() if pool.active and pool.kind in FILE_POOLS]
    named = [pool.name for pool in pools if Path(pool.path) == request.directory]
    found = []
    if request.method == "boot":
        found.append(f"{host.uri} is another machine: drill there by --method restore")
    if not named:
        there = ", ".join(f"{pool.path} ({pool.name})" for pool in pools[:_SHOWN_POOLS])
        words = f"{host.uri} has no active pool in {request.directory}: set the directory of "
        found.append(printable(f"{words}drills to one of: {there or 'none'}", 600))
    return Volumes(host.uri, named[0] if named else "", new_token()), found


def _placed(
    request: DrillRequest, name: str, directory: Path, volumes: Volumes | None
) -> tuple[tuple[PlannedImage, ...], Path]:
    """The images, and where the UEFI variables go."""
    point = request.point
    disks = chosen_disks(point, None)
    if volumes is None:
        kind = "qcow2" if request.method == "boot" else None
        images = tuple(planned_in(directory, disk, point, kind) for disk in disks)
        return images, directory / "nvram.fd"
    pool = Pool(volumes.pool, "dir", active=True, path=str(request.directory), available_bytes=0)
    token = volumes.token
    far = tuple(planned_volume(disk, pool, name, token, point, None) for disk in disks)
    return far, request.directory / volume_name(name, "nvram", token, "fd")


def _kinds(*definitions: str) -> tuple[str | None, ...]:
    return tuple(parse(xml).get("type") for xml in definitions)


def _data_bytes(repository: Repository, request: DrillRequest) -> int:
    if request.method == "boot":
        return BOOT_WRITES_BYTES * len(request.point.disks)
    return sum(stored_bytes(repository.disk_map(disk)) for disk in request.point.disks)


def _socket_problems(socket: Path) -> Iterator[str]:
    if len(os.fsencode(socket)) > _MAX_SOCKET_BYTES:
        where = socket.parent.parent
        yield f"{where} is too long for a socket: choose another directory for drills"


def _created(point: Manifest) -> dt.datetime:
    try:
        return parse_rfc3339(point.created)
    except ValueError:
        raise DamageFound(f"point {point.id} does not say when it was created") from None
