"""What makes the lab's disk boot, by BIOS and by UEFI alike: two GRUBs before one kernel.

Layout: boot.img in the MBR finds core.img at sector 1 (both are GRUB's defaults, so nothing has
to be patched), partition 1 with the root begins at 1 MiB; the last partition is a small EFI system
partition (UEFI specification 2.10, 13.3: FAT, type 0xEF, ``/EFI/BOOT/BOOTX64.EFI``). Both GRUBs
carry a config of a few lines.
"""

from __future__ import annotations

import struct
from pathlib import Path

from drvm.core.errors import DrvmError
from drvm.core.process import Processes
from drvm.core.units import MIB

ROOT_START_BYTES = MIB
ROOT_BYTES = 159 * MIB
DISK_BYTES = 162 * MIB

_EFI_START_BYTES = ROOT_START_BYTES + ROOT_BYTES
_EFI_BYTES = DISK_BYTES - _EFI_START_BYTES
_SECTOR_BYTES = 512
_LINUX, _EFI_SYSTEM = 0x83, 0xEF
_HEADER, _PREFERRED_ADDRESS = 0x202, 0x258
_CONFIG = """\
search.fs_label root root hd0,msdos1
linux /boot/vmlinuz console=tty0 console=ttyS0 panic=10
initrd /boot/initrd
boot
"""
_MODULES = ("part_msdos", "ext2", "linux", "search_label")


def loaded_low(kernel: bytes) -> bytes:
    """The kernel with a preferred address (boot protocol 2.10, ``pref_address``) of 1 MiB, where
    GRUB for BIOS has put it anyway: else it moves 50 MiB byte by byte before it starts it, which
    takes an emulated processor longer than all the rest of the boot."""
    magic, version = struct.unpack_from("<4sH", kernel, _HEADER)
    if magic != b"HdrS" or version < 0x20A:
        raise DrvmError("the kernel is none that boots by the boot protocol 2.10")
    changed = bytearray(kernel)
    struct.pack_into("<Q", changed, _PREFERRED_ADDRESS, MIB)
    return bytes(changed)


def write_boot_sectors(tree: Path, scratch: Path, raw: Path, processes: Processes) -> None:
    """MBR, BIOS and UEFI loaders, into ``raw`` of ``DISK_BYTES``. ``tree`` holds grub-common,
    grub-pc-bin, grub-efi-amd64-bin and mtools, unpacked."""
    core = _grub(tree, scratch, "i386-pc", "biosdisk", processes)
    boot = (tree / "usr/lib/grub/i386-pc/boot.img").read_bytes()[:440]
    partitions = _entry(_LINUX, ROOT_START_BYTES, ROOT_BYTES, active=True)
    partitions += _entry(_EFI_SYSTEM, _EFI_START_BYTES, _EFI_BYTES)
    mbr = boot + b"drvm\0\0" + partitions.ljust(64, b"\0") + b"\x55\xaa"
    image = mbr + core.read_bytes()
    if len(image) > ROOT_START_BYTES:
        raise DrvmError("GRUB's core image does not fit before the first partition")
    efi = _efi_system_partition(tree, scratch, processes)
    with raw.open("r+b") as disk:
        disk.write(image)
        disk.seek(_EFI_START_BYTES)
        disk.write(efi.read_bytes())


def _entry(kind: int, start_bytes: int, length_bytes: int, *, active: bool = False) -> bytes:
    """One of the four of an MBR, without the cylinders and heads that nobody reads any more."""
    no_chs = b"\xfe\xff\xff"
    place = struct.pack("<II", start_bytes // _SECTOR_BYTES, length_bytes // _SECTOR_BYTES)
    return bytes([0x80 if active else 0]) + no_chs + bytes([kind]) + no_chs + place


def _grub(tree: Path, scratch: Path, platform: str, disk: str, processes: Processes) -> Path:
    """GRUB for one platform with all that it needs inside."""
    modules = tree / "usr/lib/grub" / platform
    config, made = scratch / "grub.cfg", scratch / f"{platform}.img"
    config.write_text(_CONFIG)
    argv = [str(tree / "usr/bin/grub-mkimage"), "-O", platform, "-d", str(modules)]
    argv += ["-p", "/boot", "-c", str(config), "-o", str(made), *_MODULES]
    processes.run([*argv, *filter(None, [disk])], timeout_s=30)
    return made


def _efi_system_partition(tree: Path, scratch: Path, processes: Processes) -> Path:
    loader, image = _grub(tree, scratch, "x86_64-efi", "", processes), scratch / "efi.img"
    with image.open("wb") as file:
        file.truncate(_EFI_BYTES)

    def mtools(tool: str, *arguments: str) -> None:
        argv = [str(tree / "usr/bin/mtools"), "-c", tool, "-i", str(image), *arguments]
        processes.run(argv, timeout_s=30)

    mtools("mformat", "-T", str(_EFI_BYTES // _SECTOR_BYTES), "-h", "16", "-s", "32", "::")
    mtools("mmd", "::/EFI", "::/EFI/BOOT")
    mtools("mcopy", str(loader), "::/EFI/BOOT/BOOTX64.EFI")
    return image
