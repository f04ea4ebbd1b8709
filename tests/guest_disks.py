"""Disks with the file systems of guests, made without a mount and without device-mapper."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from tests.loops import loop_device

_SECTOR_BYTES = 512
_LVM_DATA_BYTES = MIB
_EXTENT_BYTES = 4 * MIB
ODD_NAMES = (b"caf\xe9", b"new\nline\x1b[31m", b"-rf", b" ", b"x" * 255, "snö☃".encode())
FSTAB = "LABEL=root / ext4 defaults 0 1\nLABEL=data /data xfs defaults 0 2\n"
OS_RELEASE = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=38\nPRETTY_NAME="Fedora Linux 38"\n'


def run(*argv: str | Path, stdin: str = "") -> None:
    done = subprocess.run(
        [str(part) for part in argv],
        input=stdin,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.stderr}"


def new_image(path: Path, size_bytes: int) -> Path:
    with path.open("xb") as image:
        image.truncate(size_bytes)
    return path


def small_tree(directory: Path) -> Path:
    """What every file system of the tests holds."""
    (directory / "sub").mkdir(parents=True)
    (directory / "hello").write_text(f"from {directory.name}\n")
    (directory / "sub/random").write_bytes(os.urandom(100_000))
    return directory


def root_tree(directory: Path) -> Path:
    """An operating system's, as inspection sees it, with all that is unusual in files."""
    small_tree(directory)
    for name in ("etc", "bin", "usr", "data", "var/log", "deep"):
        (directory / name).mkdir(parents=True)
    (directory / "etc/os-release").write_text(OS_RELEASE)
    (directory / "etc/fstab").write_text(FSTAB)
    (directory / "etc/hostname").write_text("web1\n")
    for name in ODD_NAMES:
        (directory / "var" / os.fsdecode(name)).write_bytes(name)
    for name, target in (
        *(("loop1", "loop2"), ("loop2", "loop1"), ("absolute", "/etc/hostname")),
        *(("near", "etc/hostname"), ("out", "../../../etc/passwd")),
    ):
        (directory / name).symlink_to(target)
    os.mkfifo(directory / "var/pipe")
    os.mknod(directory / "var/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (directory / "var/su").write_bytes(b"#!")
    (directory / "var/su").chmod(0o4755)
    with (directory / "var/sparse").open("xb") as sparse:
        sparse.truncate(60 * MIB)
        sparse.seek(20 * MIB)
        sparse.write(os.urandom(3 * MIB + 77))
    return directory


def ext4(image: Path, tree: Path, label: str = "") -> Path:
    run("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", tree, image)
    return image


def xfs(image: Path, tree: Path, label: str = "") -> Path:
    """By a prototype: only regular files and directories."""
    lines = ["/", "0 0", "d--755 0 0"]
    lines += [f"{path.name} ---644 0 0 {path}" for path in sorted(tree.iterdir()) if path.is_file()]
    for directory in sorted(path for path in tree.iterdir() if path.is_dir()):
        lines += [f"{directory.name} d--755 0 0"]
        lines += [f"{path.name} ---644 0 0 {path}" for path in sorted(directory.iterdir())]
        lines += ["$"]
    prototype = image.with_name(f"{image.name}.prototype")
    prototype.write_text("\n".join([*lines, "$", ""]))
    run("mkfs.xfs", "-q", "-f", *(["-L", label] if label else []), "-p", prototype, image)
    return image


def btrfs(image: Path, tree: Path) -> Path:
    run("mkfs.btrfs", "-q", "-f", "--rootdir", tree, image)
    return image


def vfat(image: Path, tree: Path) -> Path:
    run("mkfs.vfat", image)
    run("mcopy", "-s", "-i", image, *sorted(tree.iterdir()), "::")
    return image


def ntfs(image: Path, tree: Path) -> Path:
    """Without directories: ``ntfscp`` makes none."""
    run("mkntfs", "-q", "-f", "-F", image)
    for path in sorted(path for path in tree.iterdir() if path.is_file()):
        run("ntfscp", image, path, path.name)
    return image


def luks(image: Path) -> Path:
    """The header of LUKS1 without a key: nothing more is looked at (LUKS On-Disk Format 1.2.3)."""
    head = b"LUKS\xba\xbe\0\1" + b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0")
    head = (head + b"sha256".ljust(32, b"\0")).ljust(168, b"\0")
    with image.open("r+b") as file:
        file.write(head + b"0b8c1f9e-0000-4000-8000-000000000000".ljust(40, b"\0"))
    return image


def put(image: Path, offset: int, part: Path) -> None:
    """With its holes; the part is removed."""
    run("dd", f"if={part}", f"of={image}", "bs=64K", f"seek={offset}", "oflag=seek_bytes",
        "conv=notrunc,sparse", "status=none")  # fmt: skip
    part.unlink()


def partitioned(image: Path, label: str, parts: Iterable[Path]) -> Path:
    """``label``: ``gpt`` or ``dos``. The parts are put one after the other, from 1 MiB on."""
    lines, offset, placed = [f"label: {label}"], MIB, []
    for part in parts:
        size = part.stat().st_size
        lines.append(f"start={offset // _SECTOR_BYTES}, size={size // _SECTOR_BYTES}")
        placed.append((offset, part))
        offset += -(-size // MIB) * MIB
    new_image(image, offset + MIB)
    run("sfdisk", "-q", image, stdin="\n".join(lines) + "\n")
    for start, part in placed:
        put(image, start, part)
    return image


def volume_group(image: Path, name: str, volumes: dict[str, Path]) -> Path:
    """A physical volume with linear logical volumes, one after the other. Only metadata is written,
    so no device-mapper is needed; the data go where LVM says that they are."""
    sizes = {lv: -(-part.stat().st_size // _EXTENT_BYTES) for lv, part in volumes.items()}
    new_image(image, _LVM_DATA_BYTES + (sum(sizes.values()) + 1) * _EXTENT_BYTES)
    with loop_device(image, SystemProcesses()) as device:
        own = ["--driverloaded", "n", "--devices", device]
        own += ["--config", "backup { backup = 0 archive = 0 }"]
        run("pvcreate", *own, "-y", device)
        run("vgcreate", *own, name, device)
        for lv, extents in sizes.items():
            made = ["--extents", str(extents), "--name", lv, name]
            run("lvcreate", *own, "-an", "-Zn", "-Wn", *made)
    offset = _LVM_DATA_BYTES
    for lv, part in volumes.items():
        put(image, offset, part)
        offset += sizes[lv] * _EXTENT_BYTES
    return image


def part(tree: Path, size_mib: int) -> Path:
    """Room for what a tree holds, beside it."""
    return new_image(tree.with_name(f"{tree.name}.part"), size_mib * MIB)


def linux_disks(directory: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """(images, trees): two disks with the root of a system, and what is in each file system by its
    device: ext4 and XFS on partitions and on logical volumes, FAT; and a LUKS header."""
    trees = {
        "/dev/disk0p1": root_tree(directory / "root"),
        "/dev/disk0p2": small_tree(directory / "data"),
        "/dev/vg/home": small_tree(directory / "home"),
        "/dev/vg/srv": small_tree(directory / "srv"),
        "/dev/disk1p2": small_tree(directory / "boot"),
    }
    root, data, home, srv, boot = trees.values()
    group = {"home": ext4(part(home, 32), home), "srv": xfs(part(srv, 320), srv)}
    images = {
        "disk0": partitioned(
            directory / "disk0.raw",
            "gpt",
            [ext4(part(root, 100), root, "root"), xfs(part(data, 320), data, "data")],
        ),
        "disk1": partitioned(
            directory / "disk1.raw",
            "dos",
            [
                volume_group(directory / "pv.part", "vg", group),
                vfat(part(boot, 32), boot),
                luks(new_image(directory / "luks.part", 4 * MIB)),
            ],
        ),
    }
    return images, trees


def other_disk(directory: Path) -> tuple[Path, dict[str, Path]]:
    """(image, trees): btrfs and NTFS."""
    butter, windows = small_tree(directory / "butter"), small_tree(directory / "windows")
    shutil.rmtree(windows / "sub")
    parts = [btrfs(part(butter, 128), butter), ntfs(part(windows, 16), windows)]
    image = partitioned(directory / "other.raw", "gpt", parts)
    return image, {"p1": butter, "p2": windows}
