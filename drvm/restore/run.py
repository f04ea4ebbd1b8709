"""Doing what a plan says: images first, the machine last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import HostError
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.model import Host
from drvm.host.tpm import restored_state, sweep_states
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore.folder import make_folder, remove, write_new
from drvm.restore.images import ImageRestorer, PlannedImage, sweep_partial
from drvm.restore.plan import RestorePlan


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
    trace: Trace = no_trace,
) -> Restored:
    """Restore a machine; it is defined when all its disks are whole, and never before.

    An error leaves nothing that was made. A crash leaves partial images (the next restore of the
    same goes on with them) or whole ones that no machine uses; the state of a TPM is marked
    until its machine is defined, and swept likewise.
    """
    for directory in {image.path.parent for image in plan.images}:
        sweep_partial(directory)
    with ExitStack() as undo:
        written = _write_images(plan.images, restorer, progress, undo)
        if plan.nvram is not None and plan.nvram_path is not None:
            write_new(plan.nvram_path, plan.nvram)
            undo.callback(remove, plan.nvram_path)
        progress.stage("defining the machine")
        with contextlib.suppress(HostError):
            host.refresh_pool(plan.pool)  # so that the pool lists the images; nothing rests on it
        with _tpm_state(plan, host, trace):
            domain = host.define(plan.definition.xml)
        undo.pop_all()
    if start:
        progress.stage("starting the machine")
        domain.start()
    return Restored(tuple(image.path for image in plan.images), written, domain.name, domain.uuid)


@contextlib.contextmanager
def _tpm_state(plan: RestorePlan, host: Host, trace: Trace) -> Iterator[None]:
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
    images: tuple[PlannedImage, ...],
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
