"""What tests of captures share: engines on the real host, and looks at it that are not drvm's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

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
from tests.reading import read

_EXT4_MAGIC = b"\x53\xef"
_NEEDS_RECOVERY = 4


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
    """BLAKE3 of the disk as its extents and its reader tell it."""
    hash_ = blake3()
    with contextlib.closing(disk.open()) as reader:
        for extent in disk.extents():
            for offset in range(extent.offset, extent.end, MIB):
                length = min(MIB, extent.end - offset)
                data = extent.kind is ExtentKind.DATA
                hash_.update(read(reader, offset, length) if data else bytes(length))
    return hash_.hexdigest()


def rebuilt(disk: FrozenDisk, parent: bytes | None) -> tuple[bytes, int]:
    """The disk as a point of it would be restored, and how many bytes had to be read for it."""
    data, read_bytes = bytearray(disk.size_bytes), 0
    with contextlib.closing(disk.open()) as reader:
        for extent in disk.extents():
            if extent.kind is ExtentKind.DATA:
                data[extent.offset : extent.end] = read(reader, extent.offset, extent.length)
                read_bytes += extent.length
            elif extent.kind is ExtentKind.UNCHANGED:
                assert parent is not None
                data[extent.offset : extent.end] = parent[extent.offset : extent.end]
    return bytes(data), read_bytes


@contextlib.contextmanager
def raw_copy(
    image: Path | str, image_format: str, scratch: Path, processes: Processes
) -> Iterator[Path]:
    """The guest-visible bytes of an image, a file or what an NBD URI names; by qemu-img."""
    raw = scratch / f"{new_point_id()}.copy"
    argv = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(image), str(raw)]
    processes.run(argv, timeout_s=120)
    yield raw
    raw.unlink()


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, blake3).hexdigest()


def image_digest(image: Path | str, image_format: str, scratch: Path, processes: Processes) -> str:
    """BLAKE3 of an image's guest-visible bytes."""
    with raw_copy(image, image_format, scratch, processes) as raw:
        return file_digest(raw)


def file_in_image(path: Path, image_format: str, name: str, scratch: Path) -> bytes:
    """A file of the ext4 in an image of the lab's guest."""
    with raw_copy(path, image_format, scratch, SystemProcesses()) as raw:
        return file_in_raw(raw, name)


def file_in_raw(raw: Path, name: str) -> bytes:
    """Empty where there is none. Its journal is not replayed."""
    argv = ["debugfs", "-R", f"cat {name}", _file_system(raw)]
    return SystemProcesses().run(argv, timeout_s=60, max_output_bytes=256 * MIB).stdout


def assert_frozen_file_system(raw: Path) -> None:
    """Its ext4, if there is one, stood still when the disk was captured: a freeze empties the
    journal and says so in the superblock, the thaw takes that back."""
    superblock = _superblock(raw)
    incompatible = int.from_bytes(superblock[96:100], "little")
    assert superblock[56:58] != _EXT4_MAGIC or not incompatible & _NEEDS_RECOVERY, "it did not"


def assert_sound_file_system(raw: Path) -> None:
    """Without a replay of its journal."""
    SystemProcesses().run(["e2fsck", "-f", "-n", _file_system(raw)], timeout_s=60)


def _file_system(raw: Path) -> str:
    """For e2fsprogs."""
    return f"{raw}?offset={_offset(raw)}"


def _superblock(raw: Path) -> bytes:
    with raw.open("rb") as stream:
        stream.seek(_offset(raw) + 1024)
        return stream.read(1024)


def _offset(raw: Path) -> int:
    """The lab's root disk has a partition at 1 MiB, its other disk has none."""
    with raw.open("rb") as stream:
        stream.seek(510)
        return MIB if stream.read(2) == b"\x55\xaa" else 0


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
