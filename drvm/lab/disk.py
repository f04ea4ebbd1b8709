"""A bootable disk of a few MiB, made from Debian packages without root tricks or loop devices.

The disk carries everything it needs to boot (GRUB for BIOS and for UEFI, kernel and initramfs
inside its ext4 root), so a machine restored from it boots on any host.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from drvm.core.errors import DrvmError, ProcessFailed
from drvm.core.process import Processes
from drvm.core.units import MIB
from drvm.lab import boot
from drvm.lab.boot import DISK_BYTES, ROOT_BYTES, ROOT_START_BYTES

READY_LINE = "drvm lab guest: ready"

DATA_BYTES = 256 * MIB

_KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
_KERNEL = "linux-image-*-cloud-amd64"
_PACKAGES = (
    "busybox-static",
    "grub-common",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "libc6",
    "libglib2.0-0",
    "libnuma1",
    "libpcre2-8-0",
    "libudev1",
    "liburing2",
    "mtools",
    "qemu-guest-agent",
)
_LIBRARIES = (
    "libc.so.6",
    "libglib-2.0.so.0",
    "libgmodule-2.0.so.0",
    "libm.so.6",
    "libnuma.so.1",
    "libpcre2-8.so.0",
    "libudev.so.1",
    "liburing.so.2",
)
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio-rng")
_LATER_MODULES = ("efivarfs", "virtio_scsi", "sd_mod")
"""Loaded by the running system, where the machine has what they are for."""

_INITRAMFS_INIT = """\
#!/bin/busybox sh
export PATH=/bin
busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do busybox insmod $module; done
n=0
while [ ! -b /dev/vda1 ] && [ $n -lt 100 ]; do busybox sleep 0.1; n=$((n + 1)); done
busybox mount -t ext4 -o noinit_itable /dev/vda1 /newroot
busybox mount --move /dev /newroot/dev
exec busybox switch_root /newroot /sbin/init
"""

_FILES = {
    "etc/hostname": "lab-guest\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/os-release": 'ID=drvm-lab\nNAME="drvm lab guest"\nVERSION_ID=1\n',
    "etc/inittab": """\
::sysinit:/etc/rc
::respawn:/etc/agent
::ctrlaltdel:/bin/reboot
::shutdown:/bin/sync
::shutdown:/bin/umount -a -r
""",
    "srv/index.html": "drvm lab guest\n",
}
_SCRIPTS = {
    "etc/rc": f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -o remount,rw,noinit_itable /
hostname -F /etc/hostname
if [ -e /sys/firmware/efi ]; then
  insmod /lib/modules/*-efivarfs.ko
  mount -t efivarfs efivarfs /sys/firmware/efi/efivars
fi
if grep -q 0x0008 /sys/bus/virtio/devices/*/device; then
  for module in /lib/modules/*.ko; do insmod $module 2>/dev/null; done
  n=0
  while [ ! -b /dev/sda ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
fi
for disk in /dev/vdb /dev/sda; do
  [ -b $disk ] && mount -t ext4 -o noinit_itable $disk /data && break
done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
  ip link set eth0 up
  udhcpc -i eth0 -s /etc/dhcp -b -S >/dev/null 2>&1 &
fi
httpd -p 80 -h /srv
for console in /dev/ttyS0 /dev/tty0; do echo "{READY_LINE}" >$console; done
exit 0
""",
    "etc/agent": """\
#!/bin/sh
for port in /sys/class/virtio-ports/*; do
  if [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
    exec /bin/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -f /run/qemu-ga.pid
  fi
done
exec sleep 0.2
""",
    "etc/dhcp": """\
#!/bin/sh
case $1 in
bound | renew)
  ip address replace $ip/$mask dev $interface
  [ -n "$router" ] && ip route replace default via ${router%% *} dev $interface
  ;;
esac
exit 0
""",
    "sbin/shutdown": """\
#!/bin/sh
case " $* " in
*" -r "*) exec reboot ;;
*) exec poweroff ;;
esac
""",
}


def unpack_packages(debs: Path, tree: Path, processes: Processes) -> None:
    """Download what is missing in ``debs`` (kept between builds) and unpack all into ``tree``.

    Needs apt's lists (``apt-get update``) and its reach to a mirror, where something is missing;
    apt checks the signatures.
    """
    debs.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        if _cached(debs, name) is None:
            _download(debs, name, processes)
    if _cached(debs, _KERNEL) is None:
        _download(debs, _kernel_package(processes), processes)
    for name in (_KERNEL, *_PACKAGES):
        package = _cached(debs, name)
        if package is None:
            raise DrvmError(f"apt did not download {name}", hint="run apt-get update")
        processes.run(["dpkg-deb", "-x", str(package), str(tree)], timeout_s=60)


def make_root_disk(tree: Path, scratch: Path, raw: Path, processes: Processes) -> None:
    """Write the bootable root disk to ``raw`` (sparse). ``scratch`` is an empty directory."""
    root = scratch / "root"
    _make_root_tree(tree, root, processes)
    (root / "boot").mkdir()
    kernel = _one(tree / "boot", "vmlinuz-*").read_bytes()
    (root / "boot/vmlinuz").write_bytes(boot.loaded_low(kernel))
    (root / "boot/initrd").write_bytes(gzip.compress(_initramfs(tree), mtime=0))
    with raw.open("wb") as disk:
        disk.truncate(DISK_BYTES)
    _make_ext4(
        raw,
        ROOT_BYTES,
        processes,
        f"-Eoffset={ROOT_START_BYTES}",
        f"-d{root}",
        "-Lroot",
    )
    boot.write_boot_sectors(tree, scratch, raw, processes)


def make_data_disk(raw: Path, processes: Processes) -> None:
    """A sparse, empty ext4 file system over the whole of ``raw``."""
    with raw.open("wb") as disk:
        disk.truncate(DATA_BYTES)
    _make_ext4(raw, DATA_BYTES, processes, "-Ldata")


def _cached(debs: Path, name: str) -> Path | None:
    found = sorted(debs.glob(f"{name}_*.deb"))
    return found[-1] if found else None


def _download(debs: Path, name: str, processes: Processes) -> None:
    """Into a directory of its own first: apt writes under the final name from the first byte on.

    Without apt's sandbox, since its user perhaps can't enter the directory.
    """
    argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name]
    with tempfile.TemporaryDirectory(dir=debs) as partial:
        try:
            processes.run(["env", f"--chdir={partial}", *argv], timeout_s=300)
        except ProcessFailed as error:
            raise DrvmError(f"{name} can't be had: {error}", hint="run apt-get update") from error
        for package in Path(partial).glob("*.deb"):
            package.rename(debs / package.name)


def _kernel_package(processes: Processes) -> str:
    """The versioned package behind the meta package."""
    output = processes.run(["apt-cache", "depends", _KERNEL_META_PACKAGE], timeout_s=60)
    match = re.search(r"Depends: (linux-image-\S+)", output.stdout.decode())
    if match is None:
        raise DrvmError(f"apt does not know {_KERNEL_META_PACKAGE}", hint="run apt-get update")
    return match[1]


def _make_root_tree(tree: Path, root: Path, processes: Processes) -> None:
    libraries = ("lib64", "lib/x86_64-linux-gnu", "lib/modules")
    for name in (*libraries, "bin", "sbin", "etc", "srv", "data", "root"):
        (root / name).mkdir(parents=True)
    for name in ("dev", "proc", "sys", "run", "tmp"):
        (root / name).mkdir()
    busybox = _one(tree / "bin", "busybox")
    shutil.copy(busybox, root / "bin/busybox")
    applets = processes.run([str(busybox), "--list"], timeout_s=10).stdout.decode().split()
    for applet in set(applets) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    shutil.copy(tree / "usr/sbin/qemu-ga", root / "bin/qemu-ga")
    for soname in _LIBRARIES:
        shutil.copy(_one(tree, f"**/{soname}"), root / "lib/x86_64-linux-gnu" / soname)
    loader = "ld-linux-x86-64.so.2"
    shutil.copy(_one(tree, f"lib/**/{loader}"), root / "lib64" / loader)
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    for position, module in enumerate(modules_in_order(tree, _LATER_MODULES)):
        shutil.copy(module, root / f"lib/modules/{position:02d}-{module.name}")
    for path, text in _FILES.items():
        (root / path).write_text(text)
    for path, text in _SCRIPTS.items():
        (root / path).write_text(text)
        (root / path).chmod(0o755)


def _make_ext4(raw: Path, size_bytes: int, processes: Processes, *options: str) -> None:
    """Only features that GRUB 2.06 reads; no background initialisation, so that an idle guest
    writes nothing."""
    features = "^orphan_file,^metadata_csum_seed,^resize_inode"
    argv = ["mke2fs", "-q", "-F", "-text4", "-b4096", f"-O{features}", "-m0", *options]
    processes.run([*argv, str(raw), f"{size_bytes // 1024}k"], timeout_s=120)


def _initramfs(tree: Path) -> bytes:
    directories = ("bin", "dev", "modules", "newroot")
    entries = dict.fromkeys(directories, (0o040755, b""))
    entries["bin/busybox"] = (0o100755, (tree / "bin/busybox").read_bytes())
    entries["init"] = (0o100755, _INITRAMFS_INIT.encode())
    for position, module in enumerate(modules_in_order(tree)):
        entries[f"modules/{position:02d}-{module.name}"] = (0o100644, module.read_bytes())
    return cpio_newc(entries)


def modules_in_order(tree: Path, names: Sequence[str] = _MODULES) -> list[Path]:
    """The wanted modules, each after what it depends on. What the kernel package does not hold
    as a module is built in."""
    available = {path.stem.replace("-", "_"): path for path in tree.glob("lib/modules/**/*.ko")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        path = available.get(name)
        if path is None or name in ordered:
            return
        match = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for dependency in match[1].decode().split(",") if match else ():
            add(dependency.replace("-", "_"))
        ordered[name] = path

    for name in names:
        add(name.replace("-", "_"))
    return list(ordered.values())


def cpio_newc(entries: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive of name -> (mode, content) in the kernel's own initramfs format
    (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    archive = bytearray()
    items = [*entries.items(), ("TRAILER!!!", (0, b""))]
    for number, (name, (mode, content)) in enumerate(items, start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _one(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if not found:
        raise DrvmError(f"the Debian packages hold no {pattern}")
    return found[0]
