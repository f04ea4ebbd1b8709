"""A machine that comes from elsewhere, as a definition for KVM."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Bus = Literal["sata", "virtio"]
_PREFIX: dict[Bus, str] = {"sata": "sd", "virtio": "vd"}
_NETWORK = "default"


@dataclass(frozen=True, slots=True)
class NewMachine:
    """``networks``: one for each network card, ``""`` for libvirt's default one. ``bus``: of its
    disks; every guest starts from SATA, and only those with its drivers from virtio, which is
    then what its network cards are, too."""

    memory_mib: int
    cpus: int
    efi: bool = False
    secure_boot: bool = False
    windows: bool = False
    networks: tuple[str, ...] = ("",)
    bus: Bus = "sata"


def targets(count: int, bus: Bus) -> tuple[str, ...]:
    """``sda``, ``sdb`` ... ``sdz``, ``sdaa``."""
    letters = [chr(97 + number) for number in range(26)]
    names = [*letters, *(first + second for first in letters for second in letters)]
    return tuple(f"{_PREFIX[bus]}{name}" for name in names[:count])


def definition(machine: NewMachine, name: str, uuid: str, disks: Sequence[str]) -> str:
    """The XML, with ``disks`` that have no images yet: a restore gives each its own."""
    domain = ET.Element("domain", {"type": "kvm"})
    _add(domain, "name", name)
    _add(domain, "uuid", uuid)
    _add(domain, "memory", str(machine.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(machine.cpus))
    system = _add(domain, "os", **({"firmware": "efi"} if machine.efi else {}))
    _add(system, "type", "hvm", arch="x86_64", machine="q35")
    if machine.efi:
        enabled = "yes" if machine.secure_boot else "no"
        _add(_add(system, "firmware"), "feature", enabled=enabled, name="secure-boot")
    _add(system, "boot", dev="hd")
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if machine.secure_boot:
        _add(features, "smm", state="on")
    _add(domain, "cpu", mode="host-model", check="partial")
    _add(domain, "clock", offset="localtime" if machine.windows else "utc")
    devices = _add(domain, "devices")
    for target in disks:
        disk = _add(devices, "disk", type="file", device="disk")
        _add(disk, "driver", name="qemu", type="qcow2", discard="unmap")
        _add(disk, "target", dev=target, bus=machine.bus)
    for network in machine.networks:
        card = _add(devices, "interface", type="network")
        _add(card, "source", network=network or _NETWORK)
        _add(card, "model", type="virtio" if machine.bus == "virtio" else "e1000")
    _add(_add(devices, "serial", type="pty"), "target", port="0")
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "input", type="tablet", bus="usb")
    _add(devices, "graphics", type="vnc", autoport="yes")
    _add(_add(devices, "video"), "model", type="vga")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
