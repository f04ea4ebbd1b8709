"""The small guest: its template, its disks, its definition.

Both disks take discards, so ``fstrim`` in the guest gives space back. The second disk is mounted
at /data, port 80 serves a page where the network gives an address.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, ProcessFailed
from drvm.core.process import Processes
from drvm.lab import boot, disk

VirtType = Literal["kvm", "qemu"]

URI = "qemu:///system"
IMAGES = Path("/var/lib/libvirt/images")
"""Where libvirt's own images live: QEMU's user can reach it."""

_UEFI = "<os firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>"
_TPM = "\n    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
_PROBE_LIMIT_S = 20.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class GuestTemplate:
    """Disk images to copy from; never attached to a domain."""

    root_qcow2: Path
    data_raw: Path


def default_cache() -> Path:
    """Where packages, templates and the probe's answer are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drvm-lab"


def build_template(cache: Path, processes: Processes) -> GuestTemplate:
    """The template made by this version of the code, from ``cache`` where it was made before.

    A crash leaves at most a directory named ``*.partial``, which nobody reads; builds at the same
    time don't disturb each other. Needs apt, dpkg-deb, mke2fs and qemu-img.
    """
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (disk, boot))
    recipe = hashlib.sha256(sources).hexdigest()[:16]
    directory = cache / f"guest-{recipe}"
    template = GuestTemplate(directory / "root.qcow2", directory / "data.raw")
    if directory.is_dir():
        return template
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{directory.name}-{secrets.token_hex(4)}.partial"
    partial.mkdir()
    try:
        _build(partial, cache / "packages", processes)
        with contextlib.suppress(OSError):  # a build at the same time was first
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if not directory.is_dir():
        raise DrvmError(f"the guest template could not be moved to {directory}")
    return template


def create_disks(template: GuestTemplate, directory: Path, processes: Processes) -> dict[str, Path]:
    """Copies of the template's disks in ``directory``: target -> image (qcow2, then raw)."""
    disks = {"vda": directory / "root.qcow2", "vdb": directory / "data.raw"}
    for source, path in zip((template.root_qcow2, template.data_raw), disks.values(), strict=True):
        processes.run(
            ["cp", "--sparse=always", "--reflink=auto", str(source), str(path)], timeout_s=60
        )
    return disks


def domain_xml(
    name: str,
    directory: Path,
    *,
    virt_type: VirtType,
    network: str | None = None,
    memory_mib: int = 256,
    uefi: bool = False,
) -> str:
    """A definition around the disks of ``create_disks``; it boots from its own disk alone, by BIOS,
    or, with ``uefi``, by UEFI without secure boot and with an emulated TPM 2.0.

    The serial console is logged to ``serial.log`` in ``directory``. Nothing listens: screenshots
    need a video device only.
    """
    interface = ""
    if network is not None:
        interface = f"""
    <interface type='network'>
      <source network={quoteattr(network)}/>
      <model type='virtio'/>
    </interface>"""
    disks = "".join(
        f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='{kind}' discard='unmap'/>
      <source file={quoteattr(str(directory / file))}/>
      <target dev='{target}' bus='virtio'/>
    </disk>"""
        for target, kind, file in (("vda", "qcow2", "root.qcow2"), ("vdb", "raw", "data.raw"))
    )
    return f"""\
<domain type='{virt_type}'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  {_UEFI if uefi else "<os>"}
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_reboot>restart</on_reboot>
  <devices>{disks}{interface}
    <serial type='pty'>
      <log file={quoteattr(str(directory / "serial.log"))} append='on'/>
      <target port='0'/>
    </serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='vga'/></video>{_TPM if uefi else ""}
    <memballoon model='none'/>
  </devices>
</domain>
"""


@contextlib.contextmanager
def workspace(prefix: str, parent: Path = IMAGES) -> Iterator[Path]:
    """A fresh directory that QEMU's user can enter, removed with all it holds at the end."""
    directory = parent / f"{prefix}-{secrets.token_hex(4)}"
    directory.mkdir()
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def probe_virt_type(
    template: GuestTemplate, cache: Path, processes: Processes, clock: Clock
) -> VirtType:
    """``kvm`` where the guest boots with it under libvirt, else ``qemu`` (emulation).

    That /dev/kvm opens proves nothing: inside some virtual machines it does and no guest ever
    boots. The answer is kept in ``cache`` for this boot of the host and this QEMU.
    """
    if not Path("/dev/kvm").exists():
        return "qemu"
    version = processes.run(["qemu-system-x86_64", "--version"], timeout_s=10).stdout
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    answer = cache / f"virt-type-{hashlib.sha256(boot_id + version).hexdigest()[:16]}"
    with contextlib.suppress(FileNotFoundError):
        return "kvm" if answer.read_text() == "kvm" else "qemu"
    found: VirtType = "kvm" if _boots_with_kvm(template, processes, clock) else "qemu"
    answer.write_text(found)
    return found


def _boots_with_kvm(template: GuestTemplate, processes: Processes, clock: Clock) -> bool:
    with workspace("drvm-lab-probe") as directory:
        create_disks(template, directory, processes)
        xml, log = directory / "domain.xml", directory / "serial.log"
        xml.write_text(domain_xml(directory.name, directory, virt_type="kvm"))
        try:
            processes.run(["virsh", "-q", "-c", URI, "create", str(xml)], timeout_s=30)
        except ProcessFailed:
            return False
        try:
            return wait_for_text(log, disk.READY_LINE, _PROBE_LIMIT_S, clock)
        finally:
            # It may have died by itself.
            with contextlib.suppress(ProcessFailed):
                processes.run(["virsh", "-q", "-c", URI, "destroy", directory.name], timeout_s=30)


def wait_for_text(log: Path, text: str, limit_s: float, clock: Clock) -> bool:
    """Whether ``text`` stands in the file before ``limit_s`` seconds have passed."""
    deadline = clock.monotonic_s() + limit_s
    while True:
        with contextlib.suppress(FileNotFoundError):
            if text in log.read_text(errors="replace"):
                return True
        if clock.monotonic_s() >= deadline:
            return False
        clock.sleep(_POLL_S)


def _build(directory: Path, packages: Path, processes: Processes) -> None:
    tree, scratch, raw = directory / "tree", directory / "scratch", directory / "root.raw"
    tree.mkdir()
    scratch.mkdir()
    disk.unpack_packages(packages, tree, processes)
    disk.make_root_disk(tree, scratch, raw, processes)
    disk.make_data_disk(directory / "data.raw", processes)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    processes.run([*convert, str(raw), str(directory / "root.qcow2")], timeout_s=120)
    raw.unlink()
    shutil.rmtree(tree)
    shutil.rmtree(scratch)
