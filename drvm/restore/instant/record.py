"""What a machine that was booted from a point consists of, on disk before any of it is made.

One file per boot, ``boots/NAME.json`` under the state directory, replaced as a whole and synced. It
is written first and removed last: whatever a boot has made is found by it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from drvm.core.errors import Locked, RestoreError
from drvm.core.files import remove_durably, write_durably
from drvm.core.ids import is_disk_target, is_point_id, is_uuid, is_vm_name
from drvm.snapshot.locks import shared_directory, try_lock

VERSION = 1
_MAX_BYTES = 1024 * 1024

Phase = Literal["making", "running", "finishing", "discarding"]
"""``making``: the guest has not run yet, so nothing of it is worth keeping. ``running``: it may
have run, its writes are in its images. ``finishing``: as that, and its disks are being made plain.
``discarding``: somebody wants it gone.
"""


@dataclass(frozen=True, slots=True)
class BootDisk:
    """``image``: the local qcow2, which has the export ``target`` of the server below it. The
    policies are those of its definition before drvm set others; empty where it had none."""

    target: str
    image: str
    error_policy: str = ""
    rerror_policy: str = ""


@dataclass(frozen=True, slots=True)
class Boot:
    """``point`` is of the machine ``origin`` with the UUID ``origin_uuid``; ``nonce`` is that of
    the pin which keeps it. ``nvram``: a file of the machine's own, or empty. ``repository``: the id
    of the one that has the point, ``location`` where it was; empty in records of older drvm."""

    version: int
    name: str
    vm_uuid: str
    uri: str
    point: str
    origin: str
    origin_uuid: str
    nonce: str
    created: str
    disks: tuple[BootDisk, ...]
    nvram: str = ""
    tpm: bool = False
    phase: Phase = "making"
    repository: str = ""
    location: str = ""

    def in_phase(self, phase: Phase) -> Boot:
        return replace(self, phase=phase)


def require_repository(boot: Boot, repository_id: str, location: str) -> None:
    """Whatever goes on with it reads its point, and takes its pin off. Raises ``RestoreError``."""
    if boot.repository not in ("", repository_id):
        raise RestoreError(
            f"{boot.name} was booted from another repository: from {boot.location}, not {location}",
            hint=f"DRVM_REPOSITORY={boot.location} names it; if it is gone for good, and this is a "
            f"copy that has point {boot.point}, empty repository in boots/{boot.name}.json of "
            "state_dir",
        )


class Boots:
    """The boots of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "boots"
        shared = shared_directory()
        self._lock_directories = (self._directory, *([] if shared is None else [shared]))

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Raises ``Locked`` at once if another process, or thread, works on it."""
        with contextlib.ExitStack() as held:
            for directory in self._lock_directories:
                path = self._path(name, "lock", directory)
                with _told(path):
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    descriptor = try_lock(path)
                if descriptor is None:
                    raise Locked(
                        f"another drvm process works on {name}", hint="try again when it is done"
                    )
                held.callback(os.close, descriptor)
            yield

    def write(self, boot: Boot) -> Boot:
        """Durable when it returns what it was given. Raises ``RestoreError``; then the record is
        as it was."""
        path = self._path(boot.name, "json")
        with _told(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, msgspec.json.format(msgspec.json.encode(boot)))
        return boot

    def find(self, name: str) -> Boot | None:
        """Raises ``RestoreError`` where there is a record that is not understood; it stays."""
        path = self._path(name, "json")
        try:
            with path.open("rb") as stream:
                boot = msgspec.json.decode(stream.read(_MAX_BYTES), type=Boot)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, OSError) as problem:
            raise _unreadable(path, str(problem)) from None
        if boot.version != VERSION:
            raise _unreadable(path, f"written in format {boot.version}")
        if boot.name != name or not _sound(boot):
            raise _unreadable(path, "it is not what drvm writes")
        return boot

    def named(self, name: str) -> Boot:
        """Raises ``RestoreError`` where there is none."""
        boot = self.find(name) if is_vm_name(name) else None
        if boot is None:
            there = ", ".join(self.names()) or "none"
            raise RestoreError(
                f"no machine {name!r} was booted from a point here", hint=f"there are: {there}"
            )
        return boot

    def names(self) -> list[str]:
        return sorted(p.stem for p in self._directory.glob("*.json") if is_vm_name(p.stem))

    def remove(self, name: str) -> None:
        path = self._path(name, "json")
        with _told(path):
            remove_durably(path)

    def _path(self, name: str, suffix: str, directory: Path | None = None) -> Path:
        if not is_vm_name(name):
            raise ValueError(f"{name!r} is no name of a machine")
        stem = name if directory in (None, self._directory) else f"boot-{name}"
        return (directory or self._directory) / f"{stem}.{suffix}"


def _sound(boot: Boot) -> bool:
    """A record leads to files being deleted."""
    paths = [disk.image for disk in boot.disks] + ([boot.nvram] if boot.nvram else [])
    return (
        is_uuid(boot.vm_uuid)
        and is_point_id(boot.point)
        and is_point_id(boot.nonce)
        and all(is_disk_target(disk.target) for disk in boot.disks)
        and all(path.startswith("/") for path in paths)
    )


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise RestoreError(
            f"{path} can't be written: {problem.strerror or problem}",
            hint="nothing is booted that could not be found again: see to state_dir",
        ) from None


def _unreadable(path: Path, reason: str) -> RestoreError:
    return RestoreError(
        f"the record {path} is not understood: {reason}",
        hint="look at the machine's disks (virsh domblklist) before you move the file away",
    )
