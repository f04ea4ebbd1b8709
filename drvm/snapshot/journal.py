"""What a capture is about to do to a machine, on disk before it does it.

One file per machine, ``<vm-uuid>.json``, replaced as a whole and synced; and one lock per machine,
``<vm-uuid>.lock``, held for as long as a process works on it, gone with that process. The lock is
taken twice: next to the journal, and in a place that all drvm processes of this user on the host
share. Without the latter, a drvm with another state directory would take a capture that is under
way for one whose journal was lost, and end it (seen in tests that ran side by side).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from drvm.core.errors import CaptureError, Locked
from drvm.core.files import remove_durably, write_durably
from drvm.core.ids import is_disk_target, is_point_id, is_uuid
from drvm.host.images import FORMATS
from drvm.snapshot.disks import OVERLAY_NAME

VERSION = 1
_MAX_BYTES = 1024 * 1024

Phase = Literal["planned", "requested", "taken", "committing", "pivoting", "merging", "merged"]
"""How far a disk may have come; written before the step.

``planned``: its overlay may exist, nothing names it. ``requested``: the snapshot may have
happened. ``taken``: it has. ``committing``: an active commit may have begun. ``pivoting``: the
pivot may have happened. ``merging``: the machine is off, its overlay is being written into the
base. ``merged``: that is done, the XML may still name the overlay.
"""


@dataclass(frozen=True, slots=True)
class JournalDisk:
    target: str
    base: str
    base_format: str
    base_kind: Literal["file", "block"]
    overlay: str
    phase: Phase = "planned"


@dataclass(frozen=True, slots=True)
class Entry:
    """One capture that is under way, or was when its process died. ``frozen``: a freeze of ours
    may be in force in the guest."""

    version: int
    engine: str
    point_id: str
    vm_uuid: str
    vm_name: str
    uri: str
    disks: tuple[JournalDisk, ...]
    frozen: bool = False

    def in_phase(self, phase: Phase, target: str | None = None) -> Entry:
        """With one disk, or all of them, that far."""
        disks = tuple(
            replace(disk, phase=phase) if target in (None, disk.target) else disk
            for disk in self.disks
        )
        return replace(self, disks=disks)


class Journal:
    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "journal"
        shared = _shared_directory()
        self._lock_directories = (self._directory, *([] if shared is None else [shared]))

    @contextlib.contextmanager
    def lock(self, vm_uuid: str, vm_name: str) -> Iterator[None]:
        """Raises ``Locked`` at once if another process, or thread, works on the machine."""
        with contextlib.ExitStack() as held:
            for directory in self._lock_directories:
                path = self._path(vm_uuid, "lock", directory)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, 0o600)
                held.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Locked(
                        f"another drvm process works on {vm_name}",
                        hint="try again when it is done",
                    ) from None
            yield

    def write(self, entry: Entry) -> None:
        """Durable when it returns."""
        path = self._path(entry.vm_uuid, "json")
        write_durably(path, msgspec.json.format(msgspec.json.encode(entry)))

    def read(self, vm_uuid: str) -> Entry | None:
        """Raises ``CaptureError`` where there is a file that is not understood; it stays."""
        path = self._path(vm_uuid, "json")
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        try:
            entry = msgspec.json.decode(data, type=Entry)
        except msgspec.MsgspecError as problem:
            raise _unreadable(path, str(problem)) from None
        if entry.version != VERSION:
            raise _unreadable(path, f"written in format {entry.version}")
        if entry.vm_uuid != vm_uuid or not is_point_id(entry.point_id):
            raise _unreadable(path, "it is not about this machine")
        for disk in entry.disks:
            _check(disk, entry.point_id, path)
        return entry

    def machines(self) -> list[str]:
        """UUIDs of all machines that have a journal."""
        if not self._directory.is_dir():
            return []
        return sorted(p.stem for p in self._directory.glob("*.json") if is_uuid(p.stem))

    def remove(self, vm_uuid: str) -> None:
        remove_durably(self._path(vm_uuid, "json"))

    def _path(self, vm_uuid: str, suffix: str, directory: Path | None = None) -> Path:
        if not is_uuid(vm_uuid):
            raise ValueError(f"{vm_uuid!r} is no UUID")
        directory = directory or self._directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / f"{vm_uuid}.{suffix}"


def _shared_directory() -> Path | None:
    """This user's own directory below ``/run``, which is empty after a boot, as locks are."""
    user = os.geteuid()
    parent = Path("/run") if user == 0 else Path("/run/user") / str(user)
    return parent / "drvm" if os.access(parent, os.W_OK) else None


def _check(disk: JournalDisk, point_id: str, path: Path) -> None:
    """A journal leads to files being deleted: only such as drvm itself makes."""
    overlay, base = Path(disk.overlay), Path(disk.base)
    name = OVERLAY_NAME.fullmatch(overlay.name)
    if (
        not is_disk_target(disk.target)
        or disk.base_format not in FORMATS
        or not (overlay.is_absolute() and base.is_absolute())
        or name is None
        or name["point_id"] != point_id
        or (disk.base_kind == "file" and overlay.parent / name["base"] != base)
    ):
        raise _unreadable(path, f"{disk.target[:40]} names files that drvm did not make")


def _unreadable(path: Path, reason: str) -> CaptureError:
    return CaptureError(
        f"the journal {path} is not understood: {reason}",
        hint="look at the machine's disks (virsh domblklist) before you move the file away",
    )
