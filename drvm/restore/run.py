"""Doing what a plan says: images first, the machine last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import (
    DrvmError,
    HostError,
    HostUnreachable,
    PreflightFailed,
    RestoreError,
)
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.model import Domain, Host
from drvm.host.tpm import restored_state, sweep_states
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore.claims import check_free, claimed
from drvm.restore.folder import make_folder, remove, write_new
from drvm.restore.machine.source import parse
from drvm.restore.plan import RestorePlan
from drvm.restore.targets.block_device import DeviceRestorer, device_problems
from drvm.restore.targets.images import ImageRestorer, PlannedImage, sweep_partial
from drvm.restore.targets.partial import GOES_ON
from drvm.restore.targets.volume_lease import KEPT, HeldLease, held, on_host
from drvm.restore.targets.volume_leftovers import cleared, to_go_on_with
from drvm.restore.targets.volumes import VolumeRestorer

Sysprep = Callable[[RestorePlan], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """``name`` and ``uuid`` are empty for a restore to a folder."""

    files: tuple[Path, ...]
    written_bytes: int
    name: str = ""
    uuid: str = ""


def run_restore(
    plan: RestorePlan,
    host: Host,
    restorer: ImageRestorer,
    progress: Progress,
    *,
    start: bool,
    volumes: VolumeRestorer,
    devices: DeviceRestorer,
    sysprep: Sysprep | None = None,
    trace: Trace = no_trace,
) -> Restored:
    """Restore a machine; it is defined when all its disks are whole, and never before.

    An error leaves nothing that was made, but on a host that can't be reached any more. A crash
    leaves partial images (the next restore of the same goes on with them), volumes beside their
    lease (``drvm/restore/targets/volume_lease.py``), or whole ones that no machine uses; the state
    of a TPM is marked until its machine is defined, and swept likewise. Block devices stay written.
    """
    with ExitStack() as stack:
        stack.enter_context(claimed(host, plan.name, plan.uuid))
        check_free(host, plan.name, plan.uuid, replace=plan.replace)
        memory = plan.memory
        made = [*plan.images, *([] if memory is None else [memory])]
        for directory in {image.path.parent for image in made if image.is_file}:
            sweep_partial(directory)
        lease = stack.enter_context(_leased(plan, host, volumes, trace))
        undo = stack.enter_context(ExitStack())
        files = [image for image in plan.images if image.is_file]
        written = _write_images(files, restorer, progress, undo)
        written += _write_devices(plan, host, devices, progress)
        written += _write_volumes(plan, volumes, progress, undo, trace)
        saved = None if memory is None else stack.enter_context(restorer.made(memory, progress))
        _write_nvram(plan, volumes, undo, trace)
        if plan.sysprep and sysprep is not None:
            progress.stage("making the clone its own inside")
            sysprep(plan)
            trace("sysprep-done")
        progress.stage("defining the machine")
        for pool in plan.room:  # so that it lists the images; nothing rests on it
            with contextlib.suppress(HostError):
                host.refresh_pool(pool)
        check_free(host, plan.name, plan.uuid, replace=plan.replace)
        with tpm_state(plan, host, trace):
            domain = _define(plan, host, lease, undo, trace)
        if saved is not None:
            progress.stage("bringing the machine back")
            _bring_back(plan, host, saved.path)
            trace("machine-running")
    if start:
        progress.stage("starting the machine")
        start_restored(domain, f"{domain.name} is restored")
    return Restored(tuple(image.path for image in plan.images), written, domain.name, domain.uuid)


def start_restored(domain: Domain, done: str) -> None:
    """``done``: what is true whether it starts or not. Raises ``RestoreError``."""
    try:
        domain.start()
    except HostError as error:
        hint = error.hint or f"virsh start {domain.name} tries again: nothing is left to restore"
        raise RestoreError(f"{done}, but does not start: {error.message}", hint=hint) from None


def _bring_back(plan: RestorePlan, host: Host, memory: Path) -> None:
    """Of a machine that is whole and defined. A crash leaves it off, or running: libvirtd goes on
    with what it began."""
    try:
        host.restore_running(memory, plan.definition.xml)
    except HostError as error:
        if isinstance(error, HostUnreachable):
            raise
        raise RestoreError(
            f"{plan.name} is restored, but does not go on from its memory: {error.message}",
            hint="it is defined and off; started, it comes up as after a power cut",
        ) from None


@contextlib.contextmanager
def _leased(
    plan: RestorePlan, host: Host, volumes: VolumeRestorer, trace: Trace
) -> Iterator[HeldLease | None]:
    """A lease of the pools in which volumes are made; what dead ones left there is cleared. What a
    plan wants to go on with may be a machine's by now: only the name is ours since it was made."""
    if not plan.volume_pools:
        yield None
        return
    if plan.resumed and to_go_on_with(host, plan.what) != plan.token:
        raise RestoreError(
            f"another has gone on with the volumes that end in -{plan.token}, or removed them",
            hint="run it again: it begins anew",
        )
    about = f"{on_host(host.hostname())}restore of {plan.manifest.vm}, point {plan.manifest.id}"
    terms = host.storage, plan.volume_pools, plan.token, about, trace
    try:
        with (
            cleared(host, plan.volume_pools, volumes.clock),
            held(*terms, what=plan.what, resumed=plan.resumed) as lease,
        ):
            yield lease
        trace("volume-lease-given-back")
    except KEPT as error:
        if isinstance(error, DrvmError):
            told = f"{error.hint}; " if error.hint else ""
            goes_on = "" if GOES_ON in told else f"{GOES_ON}; "
            left = f"volumes that end in -{plan.token} are left, which drvm doctor --fix removes"
            error.hint = f"{told}{goes_on}{left}"
        raise


def _define(
    plan: RestorePlan, host: Host, lease: HeldLease | None, undo: ExitStack, trace: Trace
) -> Domain:
    """With the machine its images are made to stay: ``undo`` holds nothing more then.

    A machine is defined only over volumes that nobody takes away: the lease is looked at behind
    it, as whoever clears it away looks at the machines behind that. However this ends otherwise,
    also by a signal while libvirt defines it, the definition is taken back before the images go;
    where that can't be done they stay.
    """
    before = host.find_domain(plan.uuid)
    replaced = before.xml(inactive=True, secure=True) if before is not None else None
    try:
        domain = host.define(plan.definition.xml)
        trace("machine-defined")
        if lease is not None:
            lease.check()
            trace("machine-stays")
        undo.pop_all()
    except BaseException as error:
        images = undo.pop_all()
        if lease is None or not isinstance(error, HostUnreachable):
            _take_back(plan, host, replaced)
            undo.push(images)
        raise  # of a host that is lost, whoever finds the lease looks
    return domain


def _take_back(plan: RestorePlan, host: Host, replaced: str | None) -> None:
    """It may be defined or not, and what has its UUID may be somebody else's."""
    domain = host.find_domain(plan.uuid)
    if domain is None:
        return
    sources = parse(domain.xml(inactive=True, secure=True)).iterfind("devices/disk/source")
    named = {source.get("file") or source.get("dev") for source in sources}
    if not {str(image.path) for image in plan.images} <= named:
        return
    if replaced is not None:
        host.define(replaced)
    else:
        domain.undefine()


@contextlib.contextmanager
def tpm_state(plan: RestorePlan, host: Host, trace: Trace) -> Iterator[None]:
    """In place before the machine is defined, and gone again if that fails."""
    if host.places is None:
        yield
        return
    sweep_states(host.places.tpm, lambda uuid: host.find_domain(uuid) is not None)
    if not plan.tpm:
        yield
        return
    with restored_state(host.places.tpm, plan.uuid, plan.tpm):
        trace("tpm-state-placed")
        yield


def run_folder(
    repository: Repository,
    manifest: Manifest,
    images: tuple[PlannedImage, ...],
    directory: Path,
    restorer: ImageRestorer,
    progress: Progress,
) -> Restored:
    """Restore disks, definition, NVRAM and the state of a TPM into a folder. They may hold secrets:
    only their owner can read them. An error leaves no file, nor a folder that was made."""
    with ExitStack() as undo:
        make_folder(directory, undo)
        sweep_partial(directory)
        written = _write_images(images, restorer, progress, undo)
        files = [image.path for image in images]
        named = {"domain.xml": manifest.definition, "nvram.fd": manifest.nvram, **manifest.tpm}
        for name, blob in named.items():
            if blob is not None:
                write_new(directory / name, repository.blob(blob))
                undo.callback(remove, directory / name)
                files.append(directory / name)
        undo.pop_all()
    return Restored(tuple(files), written)


def _write_images(
    images: Sequence[PlannedImage],
    restorer: ImageRestorer,
    progress: Progress,
    undo: ExitStack,
) -> int:
    """All of them are whole before the first one has its name: where this ends in between, the
    next restore goes on with each."""
    with ExitStack() as made:
        whole = [(image, made.enter_context(restorer.made(image, progress))) for image in images]
        for image, one in whole:
            restorer.name(one, image)
            undo.callback(remove, image.path)
    return sum(one.written_bytes for _, one in whole)


def _write_devices(
    plan: RestorePlan, host: Host, devices: DeviceRestorer, progress: Progress
) -> int:
    """Whose they are is asked once more: the images before them may have taken hours."""
    chosen = [image for image in plan.images if image.device]
    if not chosen:
        return 0
    check_free(host, plan.name, plan.uuid, replace=plan.replace)
    found = tuple(device_problems(plan.images, host, plan.uuid if plan.replace else None))
    if found:
        raise PreflightFailed(f"{plan.name} can't be restored like this any more", problems=found)
    return sum(devices.restore(image, progress) for image in chosen)


def _write_volumes(
    plan: RestorePlan,
    volumes: VolumeRestorer,
    progress: Progress,
    undo: ExitStack,
    trace: Trace,
) -> int:
    written = 0
    for image in plan.images:
        if image.pool is None:
            continue
        written += volumes.restore(image, progress, trace, resumed=plan.resumed)
        _discard_on_error(undo, volumes, image.pool, image.path.name)
    return written


def _write_nvram(plan: RestorePlan, volumes: VolumeRestorer, undo: ExitStack, trace: Trace) -> None:
    if plan.nvram is None or plan.nvram_path is None:
        return
    if plan.nvram_pool is None:
        write_new(plan.nvram_path, plan.nvram)
        undo.callback(remove, plan.nvram_path)
        return
    volumes.place(plan.nvram_pool, plan.nvram_path, plan.nvram, resumed=plan.resumed)
    _discard_on_error(undo, volumes, plan.nvram_pool, plan.nvram_path.name)
    trace("nvram-placed")


def _discard_on_error(undo: ExitStack, volumes: VolumeRestorer, pool: str, name: str) -> None:
    def discard(_kind: object, error: BaseException | None, _trace: object) -> None:
        volumes.discard(pool, name, error)

    undo.push(discard)
