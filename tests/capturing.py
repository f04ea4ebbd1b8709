"""What tests of captures share: engines on the real host, and looks at it that are not drvm's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.extents import ExtentKind
from drvm.core.ids import new_point_id
from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import Trace, no_trace
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.host.libvirt_host import LibvirtHost
from drvm.snapshot.capture import CaptureRequest, EngineWish, FrozenDisk, FrozenMachine
from drvm.snapshot.choose import choose
from drvm.snapshot.journal import Journal
from drvm.snapshot.parts import Parts
from tests.guests import Guest


def make_parts(uri: str, state_dir: Path, processes: Processes, trace: Trace = no_trace) -> Parts:
    return Parts(
        host=LibvirtHost(uri),
        images=ImageTool(processes),
        processes=processes,
        journal=Journal(state_dir),
        clock=SystemClock(),
        trace=trace,
    )


@contextlib.contextmanager
def capture(
    parts: Parts,
    vm: str,
    *,
    exclude: frozenset[str] = frozenset(),
    filesystem: bool = False,
    engine: EngineWish = "auto",
) -> Iterator[FrozenMachine]:
    """By the engine that fits what the machine does, or by the one that is asked for."""
    request = CaptureRequest(
        vm=vm,
        point_id=new_point_id(),
        exclude_disks=exclude,
        require_filesystem=filesystem,
        freeze_timeout_s=2,
    )
    with choose(parts, vm, engine).engine.capture(request) as machine:
        yield machine


def digest(disk: FrozenDisk) -> str:
    """SHA-256 of the disk as its extents and its reader tell it."""
    sha = hashlib.sha256()
    with contextlib.closing(disk.open()) as reader:
        for extent in disk.extents():
            for offset in range(extent.offset, extent.end, MIB):
                length = min(MIB, extent.end - offset)
                data = extent.kind is ExtentKind.DATA
                sha.update(reader.read(offset, length) if data else bytes(length))
    return sha.hexdigest()


def rebuilt(disk: FrozenDisk, parent: bytes | None) -> tuple[bytes, int]:
    """The disk as a point of it would be restored, and how many bytes had to be read for it."""
    data, read_bytes = bytearray(disk.size_bytes), 0
    with contextlib.closing(disk.open()) as reader:
        for extent in disk.extents():
            if extent.kind is ExtentKind.DATA:
                data[extent.offset : extent.end] = reader.read(extent.offset, extent.length)
                read_bytes += extent.length
            elif extent.kind is ExtentKind.UNCHANGED:
                assert parent is not None
                data[extent.offset : extent.end] = parent[extent.offset : extent.end]
    return bytes(data), read_bytes


def image_digest(image: Path | str, image_format: str, scratch: Path, processes: Processes) -> str:
    """SHA-256 of an image's guest-visible bytes, by way of qemu-img; of a file, or of what an NBD
    URI names."""
    raw = scratch / f"{new_point_id()}.copy"
    argv = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(image), str(raw)]
    processes.run(argv, timeout_s=120)
    with raw.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    raw.unlink()
    return found


def file_in_image(path: Path, image_format: str, name: str, scratch: Path) -> bytes:
    """A file of the ext4 in an image of the lab's guest, by way of qemu-img and debugfs. Its
    qcow2 has a partition at 1 MiB, its raw disk has none."""
    raw, processes = scratch / f"{path.name}.look", SystemProcesses()
    argv = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(path), str(raw)]
    processes.run(argv, timeout_s=120)
    start = MIB if image_format == "qcow2" else 0
    argv = ["debugfs", "-R", f"cat {name}", f"{raw}?offset={start}"]
    data = processes.run(argv, timeout_s=60, max_output_bytes=256 * MIB).stdout
    raw.unlink()
    return data


def with_trace(parts: Parts, trace: Trace) -> Parts:
    return dataclasses.replace(parts, trace=trace)


def assert_back_on_its_disks(guest: Guest, parts: Parts) -> None:
    """Both definitions name the bases, nothing of drvm's lies beside them or in the journal."""
    for inactive in ("", "--inactive"):
        block_list = guest.virsh("domblklist", *([inactive] if inactive else []))
        named = dict(line.split(maxsplit=1) for line in block_list.strip().splitlines())
        for target, path in guest.disks.items():
            assert named[target].strip() == str(path)
    assert "<mirror" not in guest.virsh("dumpxml")
    assert [p.name for p in guest.directory.iterdir() if "drvm-" in p.name] == []
    assert parts.journal.machines() == []
