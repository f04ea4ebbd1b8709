"""UEFI variables and TPM state of a machine that is turned back where it is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.errors import CaptureError, HostError, RestoreError
from drvm.core.files import sync_directory, write_durably
from drvm.core.progress import Trace
from drvm.host import tpm
from drvm.host.model import Host
from drvm.host.places import StatePlaces
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.outside import nvram_file, read_nvram


@dataclass(frozen=True, slots=True)
class OutsidePlan:
    """``nvram_path`` is ``None``, and ``tpm`` empty, where nothing is to be done about it."""

    nvram_path: Path | None = None
    nvram: bytes = field(default=b"", repr=False)
    tpm: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def plan_outside(
    repository: Repository, manifest: Manifest, machine: Machine, places: StatePlaces | None
) -> OutsidePlan:
    """Changes nothing."""
    warnings: list[str] = []
    path, nvram = _plan_nvram(repository, manifest, machine, places, warnings)
    state = _plan_tpm(repository, manifest, machine, places, warnings)
    return OutsidePlan(path, nvram, state, tuple(warnings))


def turn_back_outside(
    plan: OutsidePlan, vm_uuid: str, point_id: str, host: Host, trace: Trace
) -> tuple[Path, ...]:
    """Old variables and state are kept beside the new ones; returns where. May be done again after
    a crash. Raises ``RestoreError`` and ``HostError``."""
    kept: list[Path] = []
    if plan.nvram_path is not None:
        kept.append(_place_nvram(plan.nvram_path, plan.nvram, point_id, trace))
    places = host.places
    if plan.tpm and places is not None:
        tpm.sweep_states(places.tpm, lambda uuid: host.find_domain(uuid) is not None)
        directory = places.tpm / vm_uuid
        before = _entries(directory)
        with tpm.restored_state(places.tpm, vm_uuid, plan.tpm):
            trace("tpm-state-placed")
        kept += sorted(_entries(directory) - before)
    return tuple(kept)


def _entries(directory: Path) -> set[Path]:
    return set(directory.glob("*.before-*"))


def _plan_nvram(
    repository: Repository,
    manifest: Manifest,
    machine: Machine,
    places: StatePlaces | None,
    warnings: list[str],
) -> tuple[Path | None, bytes]:
    path = nvram_file(machine, places)
    try:
        now = read_nvram(path)
    except CaptureError as problem:
        warnings.append(f"its UEFI variables stay as they are: {problem.message}")
        return None, b""
    if manifest.nvram is None:
        if now is not None:
            warnings.append("the point has no UEFI variables: those of the machine stay")
        return None, b""
    if path is None or now is None:
        warnings.append("it has no UEFI variables yet: those of the point are not put there")
        return None, b""
    wanted = repository.blob(manifest.nvram)
    if len(wanted) != len(now):
        warnings.append(
            f"its UEFI variables stay as they are: those of the point ({len(wanted)} bytes, not "
            f"{len(now)}) are of another build of the firmware"
        )
        return None, b""
    return (None, b"") if wanted == now else (Path(os.path.realpath(path)), wanted)


def _plan_tpm(
    repository: Repository,
    manifest: Manifest,
    machine: Machine,
    places: StatePlaces | None,
    warnings: list[str],
) -> Mapping[str, bytes]:
    wanted = repository.tpm_state(manifest)
    words = "the state of its TPM stays as it is"
    if machine.tpm is None or places is None or machine.tpm.directory is not None:
        if wanted:
            warnings.append(f"{words}: drvm does not know where libvirt keeps it")
        return {}
    try:
        directory = tpm.state_directory(places.tpm, machine.uuid, machine.tpm.version)
        now = tpm.read_state(directory)
    except HostError as problem:
        warnings.append(f"{words}: {problem.message}")
        return {}
    if not wanted and now:
        warnings.append(f"{words}: the point has none")
    return {} if wanted == now else wanted


def _place_nvram(path: Path, data: bytes, point_id: str, trace: Trace) -> Path:
    """The old file stays under a name of its own; the new one is as readable as it was."""
    kept = path.with_name(f"{path.name}.before-{point_id}")
    try:
        status = path.lstat()
        if os.path.lexists(kept) and not os.path.samestat(kept.lstat(), status):
            kept = kept.with_name(f"{kept.name}-{secrets.token_hex(4)}")  # it is an earlier one's
        if not os.path.lexists(kept):
            os.link(path, kept, follow_symlinks=False)
            sync_directory(path.parent)
        trace("nvram-kept")
        write_durably(path, data, mode=status.st_mode & 0o777)
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    except OSError as problem:
        raise RestoreError(f"the UEFI variables {path} can't be written: {problem}") from None
    trace("nvram-placed")
    return kept
