"""A guest's file systems through an appliance: which there are, and the files in them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from drvm.core.errors import RestoreError
from drvm.core.text import printable
from drvm.core.units import MIB, format_bytes
from drvm.restore.guestfiles.appliance import Appliance, FileProblem
from drvm.restore.guestfiles.names import (
    MAX_PATH_BYTES,
    Place,
    appliance_device,
    guest_device,
    is_file_name,
    shown_name,
)
from drvm.restore.guestfiles.wire import READ_BYTES, Entry, FileSystem, System

_MAX_PAGES = 2000
_MAX_WALKED_BYTES = 256 * MIB
"""Of paths and targets of links, in all: more than the million files that callers take have where
nobody means harm. Hostile trees may have no end, and fill the memory."""
_ENCRYPTED = {"crypto_LUKS": "LUKS", "BitLocker": "BitLocker"}
NO_FILES = frozenset(
    {"", "unknown", "swap", "LVM2_member", "linux_raid_member", "zfs_member", *_ENCRYPTED}
)


@dataclass(frozen=True, slots=True)
class FoundFileSystem:
    """``mount_points``: where the guest mounts it, by its own fstab; ``encrypted``: with what."""

    device: str
    type: str
    label: str
    uuid: str
    size_bytes: int | None
    mount_points: tuple[str, ...]
    encrypted: str

    @property
    def has_files(self) -> bool:
        return self.type not in NO_FILES


@dataclass(frozen=True, slots=True)
class FoundSystem:
    """An operating system. ``root``: the device it is on."""

    root: str
    type: str
    product: str
    hostname: str


@dataclass(frozen=True, slots=True)
class Found:
    file_systems: tuple[FoundFileSystem, ...]
    systems: tuple[FoundSystem, ...]


class GuestFiles:
    """``targets``: the disks in the order in which the appliance has them. ``problems`` grows: what
    could not be seen though nobody asked for it."""

    def __init__(self, appliance: Appliance, targets: Sequence[str]) -> None:
        self._appliance = appliance
        self._targets = tuple(targets)
        self._systems: tuple[System, ...] | None = None
        self._mounted: bytes | tuple[()] | None = ()
        self._walked_bytes = 0
        self.problems: list[str] = []

    def found(self) -> Found:
        systems = self._inspected()
        places: dict[bytes, list[bytes]] = {}
        for device, at in (mount for system in systems for mount in system.mounts):
            places.setdefault(device, []).append(at)
        listed = self._appliance.file_systems()
        inner = [
            FileSystem(device, b"btrfs" if device.startswith(b"btrfsvol:") else b"", b"", b"", None)
            for device in sorted(places.keys() - {fs.device for fs in listed})
        ]
        return Found(
            tuple(
                FoundFileSystem(
                    device=self._shown(fs.device),
                    type=_text(fs.type) or "unknown",
                    label=_text(fs.label),
                    uuid=_text(fs.uuid),
                    size_bytes=fs.size_bytes,
                    mount_points=tuple(map(_text, sorted(places.get(fs.device, [])))),
                    encrypted=_ENCRYPTED.get(_text(fs.type), ""),
                )
                for fs in (*listed, *inner)
            ),
            tuple(
                FoundSystem(
                    self._shown(system.root),
                    *map(_text, (system.type, system.product, system.hostname)),
                )
                for system in systems
            ),
        )

    def entry(self, place: Place, *, follow: bool = True) -> Entry:
        """Named as in ``place``. Raises ``RestoreError``."""
        self._mount(place)
        try:
            found = self._appliance.stat(place.path, follow=follow)
        except FileProblem as problem:
            raise _about(place, problem) from None
        return msgspec.structs.replace(found, name=place.name)

    def entries(self, place: Place, *, targets: bool = False) -> Iterator[Entry]:
        """Of a directory, in the order of their names; ``targets``: symbolic links with theirs."""
        self._mount(place)
        for number in range(_MAX_PAGES):
            try:
                page = self._appliance.page(place.path, number, targets=targets)
            except FileProblem as problem:
                raise _about(place, problem) from None
            for entry in page.entries:
                if not is_file_name(entry.name):
                    raise RestoreError(f"{place} holds a name that can't be one")
                yield entry
            if not page.more:
                return
        raise RestoreError(f"{place} holds more names than drvm takes")

    def walk(self, place: Place, *, targets: bool = False) -> Iterator[tuple[Place, Entry]]:
        """All below a directory, each directory before what is in it; no link is followed. What
        can't be listed becomes a problem, but for ``place`` itself."""
        stack = [iter([*self._inner(place, targets=targets)])]
        while stack:
            inner, entry = next(stack[-1], (None, None))
            if inner is None or entry is None:
                stack.pop()
                continue
            yield inner, entry
            if not stat.S_ISDIR(entry.mode):
                continue
            try:
                stack.append(iter([*self._inner(inner, targets=targets)]))
            except FileProblem as problem:
                self.problems.append(problem.message)

    def _inner(self, place: Place, *, targets: bool) -> Iterator[tuple[Place, Entry]]:
        for entry in self.entries(place, targets=targets):
            inner = below(place, entry.name)
            self._walked_bytes += len(inner.path) + len(entry.target or b"")
            if self._walked_bytes > _MAX_WALKED_BYTES:
                raise RestoreError(
                    f"the paths of the files take more than {format_bytes(_MAX_WALKED_BYTES)}",
                    hint="ask for one directory after the other",
                )
            if len(inner.path) > MAX_PATH_BYTES:
                self.problems.append(f"{inner}: its path is too long")
            else:
                yield inner, entry

    def read(self, place: Place, size_bytes: int) -> Iterator[bytes]:
        """A regular file's bytes; it must have ``size_bytes`` of them. Raises ``RestoreError``."""
        self._mount(place)
        offset = 0
        while offset < size_bytes:
            try:
                data = self._appliance.read(
                    place.path, offset, min(READ_BYTES, size_bytes - offset)
                )
            except FileProblem as problem:
                raise _about(place, problem) from None
            if not data:
                raise FileProblem(f"{place} ends after {offset} of {size_bytes} bytes", 0)
            yield data
            offset += len(data)

    def _words(self, problem: FileProblem) -> str:
        """The last of what was said, with the guest's names."""
        last = problem.message.partition("\\x0a")[0].rpartition("/sysroot: ")[2]
        return self._shown(last.encode(errors="replace"))

    def _shown(self, device: bytes) -> str:
        return _text(guest_device(device, self._targets))

    def _inspected(self) -> tuple[System, ...]:
        if self._systems is None:
            self._systems = self._appliance.systems()
        return self._systems

    def _mount(self, place: Place) -> None:
        if self._mounted == place.device:
            return
        if place.device is None:
            mounts = self._mounts_of_guest()
        else:
            mounts = ((appliance_device(place.device, self._targets), b"/"),)
        self._mounted = ()
        try:
            problems = self._appliance.mount(mounts)
        except FileProblem as problem:
            raise self._not_mounted(mounts, problem) from None
        self.problems += [printable(line, 500) for line in problems]
        self._mounted = place.device

    def _mounts_of_guest(self) -> tuple[tuple[bytes, bytes], ...]:
        systems = self._inspected()
        if len(systems) == 1:
            return systems[0].mounts
        found = self.found()
        if systems:
            raise RestoreError(
                f"{len(systems)} operating systems were found: "
                + ", ".join(f"{system.product} on {system.root}" for system in found.systems),
                hint=f"name the file system too, as {found.systems[0].root}:/etc/hosts",
            )
        devices = [fs.device for fs in found.file_systems if fs.has_files]
        if len(devices) == 1:
            return ((appliance_device(devices[0].encode(), self._targets), b"/"),)
        encrypted = [fs for fs in found.file_systems if fs.encrypted]
        if encrypted and not devices:
            raise _is_encrypted(encrypted[0].device, encrypted[0].encrypted)
        raise RestoreError(
            f"no operating system was found, but {len(devices)} file systems",
            hint=f"name one of them, as {devices[0]}:/etc/hosts; drvm files ls POINT lists them"
            if devices
            else "drvm serve gives the disks to other tools",
        )

    def _not_mounted(
        self, mounts: Sequence[tuple[bytes, bytes]], problem: FileProblem
    ) -> RestoreError:
        device = next(device for device, at in mounts if at == b"/")
        kind = _ENCRYPTED.get(_text(self._appliance.type_of(device)), "")
        if kind:
            return _is_encrypted(self._shown(device), kind)
        return RestoreError(
            f"{self._shown(device)} can't be mounted: {self._words(problem)}",
            hint="drvm files ls POINT lists the file systems",
        )


def below(place: Place, name: bytes) -> Place:
    return replace(place, path=place.path.rstrip(b"/") + b"/" + name)


def _is_encrypted(device: str, kind: str) -> RestoreError:
    return RestoreError(
        f"{device} is encrypted with {kind}, and drvm has no key to it",
        hint="restore the machine, which asks for its key, or open with it what drvm serve gives",
    )


def _about(place: Place, problem: FileProblem) -> FileProblem:
    """The appliance's words, without its own names for the disks."""
    words = problem.message.rpartition(": ")[2]
    return FileProblem(f"{place}: {words}", problem.errno)


def _text(value: bytes) -> str:
    return shown_name(value)
