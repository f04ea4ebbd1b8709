"""Machines whose disks are being turned back to a point: noted before the first write.

While there is a note, the disks may be of two instants: no point is taken of them. One file per
machine, ``<vm-uuid>.json``, under the machine's lock (``journal.Journal.lock``).
docs/adr/041-in-place.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drvm.core.errors import CaptureError, HostError
from drvm.core.files import remove_durably, write_durably
from drvm.core.ids import is_disk_target, is_point_id, is_uuid
from drvm.host.images import ImageTool
from drvm.snapshot.domainxml import Machine

VERSION = 1
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rollback:
    """``images``: target -> what is being written to, as libvirt names it. ``safety_point``: what
    was there before, or ``None``. ``started``: RFC 3339."""

    version: int
    vm_uuid: str
    vm_name: str
    uri: str
    point_id: str
    images: Mapping[str, str]
    safety_point: str | None
    started: str

    def concerns(self, machine: Machine, images: ImageTool) -> bool:
        """Whether the machine still has any of the images, perhaps below others: a new one may have
        its UUID. What can't be looked at may be one of them."""
        for disk in machine.disks:
            ours, top = self.images.get(disk.target), disk.layers[0]
            if ours is None or top.path is None:
                continue
            try:
                chain = images.chain(top.path, top.format or "raw")
            except HostError:
                return top.path.exists()
            if any(layer.path == Path(ours) for layer in chain):
                return True
        return False

    @property
    def hint(self) -> str:
        """What brings the machine out of it."""
        way_back = self.safety_point
        other = f", drvm restore {way_back} --in-place undoes it" if way_back is not None else ""
        return f"drvm restore {self.point_id} --in-place finishes that{other}"


class Rollbacks:
    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "rollbacks"

    def write(self, rollback: Rollback) -> None:
        """Durable when it returns. Raises ``CaptureError``."""
        path = self._path(rollback.vm_uuid)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, msgspec.json.format(msgspec.json.encode(rollback)))
        except OSError as problem:
            raise _unwritable(path, problem) from None

    def read(self, vm_uuid: str) -> Rollback | None:
        """Raises ``CaptureError`` where there is a file that is not understood; it stays."""
        path = self._path(vm_uuid)
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        try:
            found = msgspec.json.decode(data, type=Rollback)
        except msgspec.MsgspecError as problem:
            raise _unreadable(path, str(problem)) from None
        points = {found.point_id, found.safety_point or found.point_id}
        targets = all(map(is_disk_target, found.images))
        if found.version != VERSION or found.vm_uuid != vm_uuid:
            raise _unreadable(path, "it is not about this machine, or of another drvm")
        if not targets or not all(map(is_point_id, points)):
            raise _unreadable(path, "drvm did not write it")
        return found

    def machines(self) -> list[str]:
        """UUIDs of all machines that are noted."""
        if not self._directory.is_dir():
            return []
        return sorted(p.stem for p in self._directory.glob("*.json") if is_uuid(p.stem))

    def remove(self, vm_uuid: str) -> None:
        path = self._path(vm_uuid)
        try:
            remove_durably(path)
        except OSError as problem:
            raise _unwritable(path, problem) from None

    def refuse_half(self, machine: Machine, images: ImageTool) -> None:
        """Before a capture; the caller holds the machine's lock. Raises ``CaptureError`` for a
        machine that is half turned back; a note that concerns none of its images goes."""
        found = self.read(machine.uuid)
        if found is None:
            return
        if found.concerns(machine, images):
            raise CaptureError(
                f"{machine.name} is half turned back to point {found.point_id}", hint=found.hint
            )
        self.remove(machine.uuid)

    def _path(self, vm_uuid: str) -> Path:
        if not is_uuid(vm_uuid):
            raise ValueError(f"{vm_uuid!r} is no UUID")
        return self._directory / f"{vm_uuid}.json"


def _unwritable(path: Path, problem: OSError) -> CaptureError:
    return CaptureError(
        f"{path} can't be written: {problem.strerror or problem}", hint="see to state_dir"
    )


def _unreadable(path: Path, reason: str) -> CaptureError:
    return CaptureError(
        f"{path} is not understood: {reason}",
        hint="it says that a machine's disks are half turned back: restore one of its points in "
        "place before you move the file away",
    )
