"""A disk written onto a block device of this machine: one that nobody else uses.

The kernel's own claim (``O_EXCL`` on a device) keeps mounts, RAID, LVM and swap away, before and
while it is written; machines that name it are found by libvirt. All of it comes to be as it should:
zeroes too, and whatever lies behind the end of the disk, so that nothing of what it held is left.

What it holds already is read and compared, as of a partial image, so a restore that was interrupted
goes on. Of a device that holds something else that ends after the first 4 GiB.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from drvm.core.errors import DamageFound, HostError, RestoreError, UnknownVm
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.units import MIB, format_bytes
from drvm.host.model import Host
from drvm.host.rawfile import RawFileReader, RawFileWriter, raw_extents
from drvm.repository.differing import differences
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.reader import write_differing
from drvm.repository.repository import Repository
from drvm.repository.window import mapped_bytes
from drvm.restore.machine.source import parse
from drvm.restore.targets.held import HeldDisk
from drvm.restore.targets.images import PlannedImage, in_another_generation
from drvm.restore.targets.sinks import Writers, at_first_write

_NUMBERS = Path("/sys/dev/block")
_LOOKED_AT_BYTES = MIB
"""At each end: partition tables, file systems, RAID and LVM leave their signatures there."""


def planned_device(disk: Disk, path: Path, manifest: Manifest) -> PlannedImage:
    """Links such as those in /dev/disk/by-id are followed once, now."""
    point = (manifest.vm_uuid, manifest.id)
    return PlannedImage(disk, Path(os.path.realpath(path)), "raw", point, device=True)


def device_problems(
    images: tuple[PlannedImage, ...], host: Host, replaced: str | None
) -> Iterator[str]:
    """What stands in the way of writing there. ``replaced``: the UUID of a machine whose place is
    taken: its own devices may be written."""
    chosen = [image for image in images if image.device]
    for image in chosen:
        target, path = image.disk.target, image.path
        if host.remote:
            yield f"--device {target}={path}: {host.uri} is another machine; use --pool NAME there"
            continue
        if (problem := _unfit(image)) is not None:
            yield f"--device {target}={path}: {problem}"
            continue
        number = path.stat().st_rdev
        others = [_number(str(one.path)) for one in chosen if one is not image]
        if any(_overlap(number, other) for other in others):
            yield f"--device {target}={path}: another disk goes there too"
        for name in _users(host, number, replaced):
            yield (
                f"--device {target}={path}: the VM {name!r} has it as a disk; choose another "
                "device, or take it away from that VM"
            )


def is_empty(path: Path) -> bool:
    """Whether both its ends are zeroes: else there may be something that somebody wants."""
    with _claimed(path) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        ends = {0, max(0, size - _LOOKED_AT_BYTES)}
        return not any(any(os.pread(descriptor, _LOOKED_AT_BYTES, at)) for at in ends)


class DeviceRestorer:
    """Writes disks of a repository onto devices of this machine."""

    def __init__(self, repository: Repository, trace: Trace = no_trace) -> None:
        self._repository = repository
        self._trace = trace

    def restore(self, image: PlannedImage, progress: Progress) -> int:
        """Write what of the disk the device does not hold, and zeroes behind it; returns the bytes
        written of the disk. Durable when it returns.

        Every block is verified. Raises ``DamageFound`` and ``RestoreError``. An error or a crash
        leaves a part of it written, and no machine that uses it; the next restore goes on.
        """
        try:
            with _claimed(image.path) as descriptor:
                size = os.lseek(descriptor, 0, os.SEEK_END)
                if size < image.size_bytes:
                    raise HostError(f"it has {size} bytes and the disk {image.size_bytes}")
                try:
                    return self._fill(image, size, progress)
                except DamageFound:
                    again = in_another_generation(self._repository, image)
                    if again is None:
                        raise
                    return self._fill(again, size, progress)
        except HostError as error:
            raise RestoreError(
                f"disk {image.disk.target} can't be restored to {image.path}: {error.message}",
                hint=error.hint or "what it held is gone; give it anew, or choose another device",
            ) from None

    def _fill(self, image: PlannedImage, size: int, progress: Progress) -> int:
        repository, target, end = self._repository, image.disk.target, image.disk.size_bytes
        disk_map = repository.disk_map(image.disk)
        progress.stage(f"restoring {target}", end + mapped_bytes(disk_map))
        with ExitStack() as stack:
            writers = stack.enter_context(
                closing(Writers(partial(RawFileWriter, image.path, size)))
            )
            readers = (
                partial(RawFileReader, image.path, size),
                partial(raw_extents, image.path, end),
            )
            there = stack.enter_context(closing(HeldDisk(*readers, end)))
            tools = repository.hasher, repository.tables, there, progress.advance
            found = stack.enter_context(closing(differences(disk_map, *tools, while_alike=True)))
            done = write_differing(
                disk_map,
                repository.packs,
                repository.hasher,
                found,
                at_first_write(writers.write, lambda: self._trace(f"device-begun-{target}")),
                writers.zero,
                progress=progress.advance,
            )
            self._trace(f"device-written-{target}")
            writers.zero(end, size - end)
            writers.flush()
            self._trace(f"device-durable-{target}")
        return done.written_bytes


def _unfit(image: PlannedImage) -> str | None:
    try:
        if not stat.S_ISBLK(os.lstat(image.path).st_mode):
            return "it is no block device; --pool NAME restores to files"
        with _claimed(image.path) as descriptor:
            size = os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        return f"{error.strerror}; is that its name?".lower()
    except HostError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    if size < image.size_bytes:
        return (
            f"it has {format_bytes(size)} and the disk {format_bytes(image.size_bytes)}; choose a "
            "larger one"
        )
    return None


def _users(host: Host, number: int, replaced: str | None) -> Iterator[str]:
    """Machines, running or not, one of whose disks overlaps the device of that number."""
    for domain in host.domains():
        if domain.uuid == replaced:
            continue
        with contextlib.suppress(UnknownVm, RestoreError):  # gone, or not ours to judge
            for xml in (domain.xml(inactive=True), domain.xml()):
                if any(_overlap(number, _number(path)) for path in _named(host, xml)):
                    yield domain.name
                    break


def _named(host: Host, xml: str) -> Iterator[str]:
    """Paths of what its disks may be, also of volumes that are named by their pool."""
    for source in parse(xml).iterfind(".//source"):
        yield from (path for at in ("dev", "file") if (path := source.get(at)))
        pool, name = source.get("pool"), source.get("volume")
        if pool and name:
            with contextlib.suppress(HostError):  # there is no such pool now
                if (volume := host.storage.volume(pool, name)) is not None:
                    yield volume.path


def _overlap(number: int, other: int | None) -> bool:
    """Whether two devices are the same one, or one is a partition of the other."""
    return other is not None and (
        number == other or _whole(number) == other or number == _whole(other)
    )


def _whole(number: int) -> int | None:
    """The device that this one is a partition of."""
    told = _NUMBERS / f"{os.major(number)}:{os.minor(number)}"
    with contextlib.suppress(OSError, ValueError):
        if (told / "partition").exists():
            major, minor = (told.resolve().parent / "dev").read_text().split(":")
            return os.makedev(int(major), int(minor))
    return None


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        status = Path(path).stat()
        return status.st_rdev if stat.S_ISBLK(status.st_mode) else None
    return None


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[int]:
    """Ours alone, as the kernel sees it, but for programs that don't ask. Raises ``HostError``."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HostError(
                "it is in use", hint="it is mounted, or belongs to a RAID, LVM or swap: lsblk shows"
            ) from None
        raise HostError(f"it can't be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
