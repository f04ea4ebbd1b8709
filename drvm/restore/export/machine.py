"""What a machine is to a hypervisor that is not KVM, and what of it has no place there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from drvm.core.errors import RestoreError
from drvm.core.text import printable
from drvm.core.units import MIB
from drvm.repository.manifest import Disk, Manifest
from drvm.restore.machine.definition import DefinitionSpec, Identity, rebuild
from drvm.restore.machine.disks import DiskImage
from drvm.restore.machine.source import memory_bytes, parse

_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_SMALL = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_LINUX = re.compile(
    r"linux|debian|ubuntu|redhat|rhel|centos|fedora|suse|sles|alma|rocky|oracle|alpine|arch",
    re.IGNORECASE,
)
_WINDOWS = re.compile(r"microsoft|windows|mswindows", re.IGNORECASE)
_MAX_NICS = 10
"""As many as VMware takes."""
_CARRIED = frozenset({"disk", "interface", "controller", "emulator", "memballoon", "rng", "video"})
_MEANINGLESS = frozenset({"input", "graphics", "audio", "console", "serial", "channel"})


@dataclass(frozen=True, slots=True)
class ExportedMachine:
    """``disks``: targets, in the order of the machine. ``networks``: one for each network card,
    by its name on the KVM host. ``system``: ``linux``, ``windows`` or ``other``. ``notes``: what
    is another there, or is not carried over; lines for people, safe to print and bounded."""

    name: str
    memory_mib: int
    cpus: int
    cores_per_socket: int
    efi: bool
    secure_boot: bool
    system: str
    disks: tuple[str, ...]
    networks: tuple[str, ...]
    notes: tuple[str, ...]


def exported_machine(
    definition_xml: str, manifest: Manifest, name: str, disks: tuple[Disk, ...]
) -> ExportedMachine:
    """The definition is hostile: only what the allow list of a restore lets through is looked at.
    Raises ``RestoreError``."""
    images = {disk.target: DiskImage(f"/{disk.target}", disk.format) for disk in disks}
    devices = parse(definition_xml).iterfind("devices/interface[@type='direct']/source")
    below = {named for source in devices if _NETWORK.fullmatch(named := source.get("dev", ""))}
    spec = DefinitionSpec(
        Identity(name, manifest.vm_uuid, keep_macs=True),
        images,
        networks={device: device for device in below},
    )
    rebuilt = rebuild(definition_xml, spec)
    tree = parse(rebuilt.xml)
    memory_mib = -(-memory_bytes(tree) // MIB)
    if not 0 < memory_mib < 1 << 24:
        raise RestoreError(
            "the domain XML says no size of memory that can be exported",
            hint="restore its disks to a folder with --output, or take another point",
        )
    cpus = _number(tree.findtext("vcpu"))
    topology = tree.find("cpu/topology")
    cores = 1 if topology is None else _cores(topology)
    networks = tuple(_networks(tree))
    return ExportedMachine(
        name=name,
        memory_mib=memory_mib,
        cpus=cpus,
        cores_per_socket=cores if cpus % cores == 0 else 1,
        efi=_is_efi(tree),
        secure_boot=_is_secure(tree),
        system=_system(tree, manifest),
        disks=tuple(images),
        networks=networks[:_MAX_NICS],
        notes=(*_notes(tree, manifest, networks), *_left_out(rebuilt.dropped)),
    )


def _number(text: str | None) -> int:
    found = _SMALL.fullmatch((text or "").strip())
    return int(found[0]) if found else 1


def _cores(topology: ET.Element) -> int:
    return _number(topology.get("cores")) * _number(topology.get("threads"))


def _is_efi(tree: ET.Element) -> bool:
    machine = tree.find("os")
    return machine is not None and machine.get("firmware") == "efi"


def _is_secure(tree: ET.Element) -> bool:
    feature = tree.find("os/firmware/feature[@name='secure-boot']")
    return feature is not None and feature.get("enabled") == "yes"


def _system(tree: ET.Element, manifest: Manifest) -> str:
    told = [element.get("id", "") for element in tree.iterfind("metadata/*/*")]
    told += [manifest.guest.get("os_id", ""), manifest.guest.get("os", "")]
    text = " ".join(told)[:1000]
    if _WINDOWS.search(text):
        return "windows"
    return "linux" if _LINUX.search(text) else "other"


def _networks(tree: ET.Element) -> Iterator[str]:
    for card in tree.iterfind("devices/interface"):
        source = card.find("source")
        named = "" if source is None else source.get("network") or source.get("bridge") or ""
        yield named if _NETWORK.fullmatch(named) else "network"


def _notes(tree: ET.Element, manifest: Manifest, networks: tuple[str, ...]) -> Iterator[str]:
    buses = {target.get("bus") for target in tree.iterfind("devices/disk/target")}
    if buses & {"virtio", "scsi"}:
        yield (
            "disks were on virtio and are on SATA: a Linux guest needs the driver ahci in its "
            "initramfs (dracut --add-drivers ahci), and /etc/fstab by UUID or label"
        )
    models = {model.get("type") for model in tree.iterfind("devices/interface/model")}
    if models - {"e1000"}:
        yield "network cards are Intel E1000: the guest may give them other names"
    macs = [mac.get("address", "") for mac in tree.iterfind("devices/interface/mac")]
    if macs:
        yield f"MAC addresses are new ones; they were {', '.join(macs[:_MAX_NICS])}"
    if len(networks) > _MAX_NICS:
        yield f"only {_MAX_NICS} of {len(networks)} network cards are described"
    if _is_efi(tree):
        yield (
            "choose UEFI as the firmware where the import does not; its variables are not carried "
            "over: the guest must start from EFI/BOOT/BOOTX64.EFI"
        )
    if manifest.tpm or tree.find("devices/tpm") is not None:
        yield (
            "the TPM and its state are not carried over: disks that are sealed to it need their "
            "recovery key"
        )
    yield "guest tools are the hypervisor's own: the QEMU guest agent has nobody to talk to"
    known = _CARRIED | _MEANINGLESS | {"tpm"}
    other = sorted({child.tag for child in tree.iterfind("devices/*")} - known)
    if other:
        yield printable(f"not described: {', '.join(other)}", 300)


def _left_out(dropped: tuple[str, ...]) -> Iterator[str]:
    yield from (f"left out, as in any restore: {line}" for line in dropped)
