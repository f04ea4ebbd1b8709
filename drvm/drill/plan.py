"""What a drill will do, as a value: printed by ``--dry-run``, asserted by tests, then done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from drvm.core.clock import Clock, parse_rfc3339
from drvm.core.errors import DamageFound, HostError, PreflightFailed, UsageError
from drvm.core.ids import new_point_id
from drvm.drill import room as rooms
from drvm.drill.checks.base import Card, Check
from drvm.drill.console import with_console
from drvm.drill.place import drill_name, drill_uuid
from drvm.drill.room import Room
from drvm.drill.ways import cards_of, way_problems
from drvm.host.model import Host
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.repository.window import stored_bytes
from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity, VirtType
from drvm.restore.machine.disks import DiskImage
from drvm.restore.machine.flash import rebuild_to_fit
from drvm.restore.machine.source import memory_bytes, parse
from drvm.restore.plan import chosen_disks, read_definition
from drvm.restore.preflight import needs, problems
from drvm.restore.target import gather
from drvm.restore.targets.images import PlannedImage, planned_in

DEFAULT_DIRECTORY = Path("/var/lib/libvirt/images")
DEFAULT_BOOT_TIMEOUT_S = 300.0
MAX_CHECKS = 100


@dataclass(frozen=True, slots=True)
class DrillRequest:
    """``boot_timeout_s``: how long the guest may take until it first answers. ``directory``: on
    the host that drvm runs on, where the images go. ``virt_type``: ``qemu`` where the host has
    no KVM; ``None`` keeps the original's."""

    point: Manifest
    checks: tuple[Check, ...]
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S
    rto_target_s: float | None = None
    rpo_target_s: float | None = None
    directory: Path = DEFAULT_DIRECTORY
    virt_type: VirtType | None = None


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """``name``: of the machine, its network and the last part of ``directory``. The definition
    may hold secrets: show it redacted.

    ``network``: ``None`` for a machine without a network card. ``console``: where its serial
    console is logged to. ``emulated``: the original ran on
    KVM and the drill will not. ``data_bytes``: what will be written to the images.
    ``created``: the instant that the point shows. ``started``, ``plan_s``: when the planning
    began, and how long it took.
    """

    id: str
    name: str
    directory: Path
    request: DrillRequest
    network: str | None
    cards: tuple[Card, ...]
    console: Path | None
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

    @property
    def dropped(self) -> tuple[str, ...]:
        return self.definition.dropped


def plan_drill(
    repository: Repository,
    host: Host,
    request: DrillRequest,
    clock: Clock,
    look: Callable[[Path], Room] = rooms.look,
) -> DrillPlan:
    """Raises ``PreflightFailed`` with every problem at once, ``RestoreError`` for a point that no
    machine can be made of, ``UsageError``; nothing is changed.

    The machine gets a name and UUID of its own, as libvirt can't hold the original's twice; MACs,
    disks and all other hardware are the original's.
    """
    _check(request)
    started, started_s = clock.now(), clock.monotonic_s()
    name = drill_name(drill_id := new_point_id())
    directory = request.directory / name
    point = request.point
    original_xml = read_definition(repository, point)
    images = tuple(planned_in(directory, disk, point) for disk in chosen_disks(point, None))
    nvram_path = directory / "nvram.fd"
    tpm = repository.tpm_state(point) if host.places is not None else {}
    spec = _spec(name, images, nvram_path, request, tpm_state=bool(tpm))
    nvram = repository.blob(point.nvram) if point.nvram is not None else None
    definition, unfit = rebuild_to_fit(host, original_xml, spec, nvram)
    definition, console = with_console(definition, directory, request.checks)
    machine = parse(definition.xml)
    data_bytes = sum(stored_bytes(repository.disk_map(disk)) for disk in point.disks)
    needed_bytes = memory_bytes(machine)
    found = [*_own_problems(host, point), *_host_problems(host, definition, name), *unfit]
    found += way_problems(host, request.checks, has_card=bool(definition.networks))
    found += rooms.problems(
        _look(look, request.directory),
        request.directory,
        data_bytes=data_bytes,
        memory_bytes=needed_bytes,
    )
    if found:
        raise PreflightFailed(f"{point.vm} can't be drilled on {host.uri}", problems=found)
    return DrillPlan(
        id=drill_id,
        name=name,
        directory=directory,
        request=request,
        network=name if definition.networks else None,
        cards=cards_of(definition.xml, point.guest),
        console=console,
        images=images,
        definition=definition,
        nvram=nvram,
        nvram_path=nvram_path,
        tpm=tpm,
        emulated=(parse(original_xml).get("type"), machine.get("type")) == ("kvm", "qemu"),
        data_bytes=data_bytes,
        memory_bytes=needed_bytes,
        host=host.hostname(),
        created=_created(point),
        started=started,
        plan_s=clock.monotonic_s() - started_s,
    )


def network_xml(name: str) -> str:
    """Neither ``<forward>`` nor ``<ip>``: nobody else is on the wire, the host included, and
    there is no DHCP. libvirt chooses the bridge (their names have 15 characters at most).
    https://libvirt.org/formatnetwork.html"""
    return f"<network><name>{name}</name></network>"


def _check(request: DrillRequest) -> None:
    if not request.directory.is_absolute():
        raise UsageError(f"the directory for drills, {request.directory}, is not absolute")
    if not request.checks:
        raise UsageError(
            "a drill without any check proves nothing", hint="ask at least for the agent's answer"
        )
    if len(request.checks) > MAX_CHECKS:
        raise UsageError(f"a drill can have {MAX_CHECKS} checks, not {len(request.checks)}")


def _spec(
    name: str,
    images: tuple[PlannedImage, ...],
    nvram_path: Path,
    request: DrillRequest,
    *,
    tpm_state: bool,
) -> DefinitionSpec:
    """With a path for the NVRAM in any case: an empty one too must lie where it is removed."""
    return DefinitionSpec(
        identity=Identity(name, drill_uuid(name), keep_macs=True),
        disks={image.disk.target: DiskImage(str(image.path), image.format) for image in images},
        isolate_to=f"network:{name}",
        nvram_path=str(nvram_path),
        tpm_state=tpm_state,
        virt_type=request.virt_type,
    )


def _own_problems(host: Host, point: Manifest) -> Iterator[str]:
    if urlsplit(host.uri).netloc:
        yield (
            f"{host.uri} is another machine: run drvm there, as the disks of a drill are files of "
            "the machine that drvm runs on"
        )
    if not point.disks:
        yield f"point {point.id} has no disks"


def _host_problems(host: Host, definition: Definition, name: str) -> tuple[str, ...]:
    need = needs(definition, replace=False, transient_network=name)
    return problems(gather(host), need)


def _look(look: Callable[[Path], Room], directory: Path) -> Room:
    try:
        return look(directory)
    except OSError as problem:
        raise HostError(f"{directory} can't be looked at: {problem.strerror}") from None


def _created(point: Manifest) -> dt.datetime:
    try:
        return parse_rfc3339(point.created)
    except ValueError:
        raise DamageFound(f"point {point.id} does not say when it was created") from None
