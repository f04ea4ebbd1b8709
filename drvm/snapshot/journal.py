"""What a capture is about to do to a machine, on disk before it does it.

One file per machine, ``<vm-uuid>.json``, replaced as a whole and synced; and one lock per machine,
``<vm-uuid>.lock``, held for as long as a process works on it, gone with that process. The lock is
taken twice: next to the journal, and in a place that all drvm processes of this user on the host
share. Without the latter, a drvm with another state directory would take a capture that is under
way for one whose journal was lost, and end it (seen in tests that ran side by side).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from drvm.core.errors import CaptureError, Locked
from drvm.core.files import remove_durably, write_durably
from drvm.core.ids import is_disk_target, is_point_id, is_uuid
from drvm.host.images import FORMATS
from drvm.snapshot.disks import MEMORY_NAME, OVERLAY_NAME, SCRATCH_NAME, SOCKET_NAME
from drvm.snapshot.locks import say_who, shared_directory, try_lock, who
from drvm.snapshot.rollbacks import Rollbacks

VERSION = 1
_MAX_BYTES = 1024 * 1024

Phase = Literal[
    "planned", "requested", "taken", "committing", "pivoting", "merging", "merged", "standing"
]
"""How far a disk may have come; written before the step.

``planned``: its overlay may exist, nothing names it. ``requested``: the snapshot may have
happened. ``taken``: it has. ``committing``: an active commit may have begun. ``pivoting``: the
pivot may have happened. ``merging``: the machine is off, its overlay is being written into the
base. ``merged``: that is done, the XML may still name the overlay. ``standing``: the machine runs
on it on purpose, between captures; or, below an overlay that is kept, it is being written into its
base.
"""

Aim = Literal["back", "forward", "home"]
"""Where a capture is to end. ``back``: as it began, its overlays gone. ``forward``: its overlays
stand, and what stood under them is gone: the point is good. ``home``: on the machine's own images,
nothing of drvm's stands.
"""


@dataclass(frozen=True, slots=True)
class JournalDisk:
    """``base`` is what lies right below ``overlay``: the machine's own image, or an overlay that
    stands. ``identity`` is that of the two at rest, where they stand: see ``checkpoints.identity``.
    """

    target: str
    base: str
    base_format: str
    base_kind: Literal["file", "block"]
    overlay: str
    phase: Phase = "planned"
    identity: str = ""

    @property
    def point_id(self) -> str:
        """Of the capture that made the overlay: all that was written since is in it."""
        name = OVERLAY_NAME.fullmatch(Path(self.overlay).name)
        return "" if name is None else name["point_id"]


@dataclass(frozen=True, slots=True)
class PullFiles:
    """What a pull backup makes. ``scratches``: target -> the file that holds what the guest has
    overwritten since the backup began."""

    socket: str
    scratches: Mapping[str, str]

    @property
    def point_id(self) -> str:
        """Empty where any name is not one that drvm makes, or where they are of several points."""
        names = [SCRATCH_NAME.fullmatch(Path(path).name) for path in self.scratches.values()]
        names.append(SOCKET_NAME.fullmatch(Path(self.socket).name))
        points = {"" if name is None else name["point_id"] for name in names}
        absolute = all(path.startswith("/") for path in (self.socket, *self.scratches.values()))
        return points.pop() if len(points) == 1 and absolute else ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One capture that is under way, or was when its process died; and what stands.

    ``disks``: the overlays of the capture. ``standing``: those of an earlier one on which the
    machine runs between captures, or, during one, on which the overlays of ``disks`` lie.
    ``frozen``: a freeze of ours may be in force in the guest. ``commit_bandwidth_mib_s``: 0 is no
    limit. ``was_running``: the machine was not paused when the capture began. ``pull``: of a pull
    backup, which has no overlays. ``memory``: the file to which libvirtd writes the machine's
    memory, or nothing.
    """

    version: int
    engine: str
    point_id: str
    vm_uuid: str
    vm_name: str
    uri: str
    disks: tuple[JournalDisk, ...]
    frozen: bool = False
    commit_bandwidth_mib_s: int = 0
    was_running: bool = False
    standing: tuple[JournalDisk, ...] = ()
    aim: Aim = "back"
    pull: PullFiles | None = None
    memory: str = ""

    @property
    def growing(self) -> dict[str, Path]:
        """The capture's files that grow as the guest writes, by target."""
        pulled = self.pull.scratches if self.pull is not None else {}
        files = {disk.target: disk.overlay for disk in self.disks} | dict(pulled)
        return {target: Path(path) for target, path in files.items()}

    @property
    def at_rest(self) -> bool:
        """Nothing is half-done."""
        return bool(self.standing) and not (self.disks or self.frozen or self.pull or self.memory)

    def folding(self, targets: Collection[str]) -> Entry:
        """From rest: the overlays of ``targets`` are to be written into their bases and go. Those
        of one capture at a time, so call it until it is at rest again without them."""
        points = {disk.point_id for disk in self.standing if disk.target in targets}
        point_id = min(points, default=self.point_id)
        going = [d for d in self.standing if d.target in targets and d.point_id == point_id]
        staying = tuple(disk for disk in self.standing if disk not in going)
        entry = replace(self, point_id=point_id, disks=tuple(going), standing=staying, aim="back")
        return entry.in_phase("taken")

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
        self.rollbacks = Rollbacks(state_dir)
        shared = shared_directory()
        self._lock_directories = (self._directory, *([] if shared is None else [shared]))

    @contextlib.contextmanager
    def lock(self, vm_uuid: str, vm_name: str) -> Iterator[None]:
        """Raises ``Locked`` at once if another process, or thread, works on the machine."""
        with contextlib.ExitStack() as held:
            for directory in self._lock_directories:
                path = self._path(vm_uuid, "lock", directory)
                with _told(path):
                    descriptor = try_lock(path)
                if descriptor is None:
                    raise Locked(
                        f"another drvm process works on {vm_name}{who(path)}",
                        hint="try again when it is done; drvm status shows what the daemon does",
                    )
                held.callback(os.close, descriptor)
                say_who(descriptor)
            yield

    def refuse_locked(self, vm_uuid: str, vm_name: str) -> None:
        """Before anything else is done for work on it. Raises ``Locked``; whoever comes later is
        found by ``lock``."""
        with self.lock(vm_uuid, vm_name):
            pass

    def write(self, entry: Entry) -> None:
        """Durable when it returns. Raises ``CaptureError``; then the journal is as it was."""
        path = self._path(entry.vm_uuid, "json")
        with _told(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        stands = {disk.target: disk.overlay for disk in entry.standing}
        for disk in (*entry.disks, *entry.standing):
            _check(disk, path, stands_on=stands.get(disk.target))
        if any(disk.point_id != entry.point_id for disk in entry.disks):
            raise _unreadable(path, "it names overlays of another capture")
        if entry.pull is not None and entry.pull.point_id != entry.point_id:
            raise _unreadable(path, "it names files that drvm did not make")
        if entry.memory and not _is_memory(entry):
            raise _unreadable(path, "it names a memory that drvm did not make")
        return entry

    def machines(self) -> list[str]:
        """UUIDs of all machines that have a journal."""
        if not self._directory.is_dir():
            return []
        return sorted(p.stem for p in self._directory.glob("*.json") if is_uuid(p.stem))

    def remove(self, vm_uuid: str) -> None:
        path = self._path(vm_uuid, "json")
        with _told(path):
            remove_durably(path)

    def _path(self, vm_uuid: str, suffix: str, directory: Path | None = None) -> Path:
        if not is_uuid(vm_uuid):
            raise ValueError(f"{vm_uuid!r} is no UUID")
        return (directory or self._directory) / f"{vm_uuid}.{suffix}"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise CaptureError(
            f"{path} can't be written: {problem.strerror or problem}",
            hint="without its journal drvm touches no machine: see to state_dir",
        ) from None


def _is_memory(entry: Entry) -> bool:
    """Whether it lies beside an overlay, of the capture itself or of one that is gone."""
    name = MEMORY_NAME.fullmatch(Path(entry.memory).name)
    return (
        Path(entry.memory).is_absolute() and name is not None and name["point_id"] == entry.point_id
    )


def _check(disk: JournalDisk, path: Path, stands_on: str | None) -> None:
    """A journal leads to files being deleted: only such as drvm itself makes."""
    overlay, base = Path(disk.overlay), Path(disk.base)
    name = OVERLAY_NAME.fullmatch(overlay.name)
    own = name is not None and overlay.parent / name["base"] == base
    if (
        not is_disk_target(disk.target)
        or disk.base_format not in FORMATS
        or not (overlay.is_absolute() and base.is_absolute())
        or name is None
        or (disk.base_kind == "file" and not own and disk.base != stands_on)
        or disk.base == disk.overlay
    ):
        raise _unreadable(path, f"{disk.target[:40]} names files that drvm did not make")


def _unreadable(path: Path, reason: str) -> CaptureError:
    return CaptureError(
        f"the journal {path} is not understood: {reason}",
        hint="look at the machine's disks (virsh domblklist) before you move the file away",
    )
