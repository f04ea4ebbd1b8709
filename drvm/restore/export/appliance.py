"""Reading an OVF: which machine it describes, and in which files its disks are. Hostile.

What VMware, VirtualBox and others write differs: namespaces of version 1 and 2, extensions, item
names. So elements are looked for by their names alone, whatever their namespace, and nothing is
believed but what has the form that it must have.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from drvm.core.errors import UsageError
from drvm.core.text import printable
from drvm.core.units import GIB, KIB, MIB
from drvm.restore.machine.source import parse

MAX_DISKS = 60
MAX_NETWORK_CARDS = 10

_NAMESPACES = tuple(f"http://schemas.dmtf.org/ovf/envelope/{version}" for version in (1, 2))
_ITEMS = frozenset({"Item", "StorageItem", "EthernetPortItem"})
_CPU, _MEMORY, _NETWORK_CARD, _DISK = "3", "4", "10", "17"
_FILE = re.compile(r"(?!\.)[A-Za-z0-9 ._+@()-]{1,200}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_DISK_OF = re.compile(r"(?:ovf:)?/disk/([A-Za-z0-9._-]{1,200})", re.ASCII)
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_UNITS = {
    "byte": 1,
    "bytes": 1,
    "byte * 2^10": KIB,
    "kilobytes": KIB,
    "byte * 2^20": MIB,
    "megabytes": MIB,
    "mb": MIB,
    "byte * 2^30": GIB,
    "gigabytes": GIB,
    "gb": GIB,
}
"""DSP0004's programmatic units, and the words that older programs write."""
_WINDOWS = re.compile(r"win", re.IGNORECASE)
_HINT = "import the disks by themselves: drvm import FILE... --name NAME --memory SIZE"


@dataclass(frozen=True, slots=True)
class Appliance:
    """``files``: of the disks, in the order of the machine, plain names beside the description.
    ``networks``: one for each network card, ``""`` where its name is none that libvirt takes."""

    memory_mib: int
    cpus: int
    efi: bool
    secure_boot: bool
    windows: bool
    files: tuple[str, ...]
    networks: tuple[str, ...]
    notes: tuple[str, ...]


def read_appliance(text: str) -> Appliance:
    """Raises ``RestoreError`` for what is no OVF, and ``UsageError`` for one that drvm does not
    take."""
    version_2 = _NAMESPACES[1] in text[:4096] and _NAMESPACES[0] not in text[:4096]
    root = parse(text, root=f"{{{_NAMESPACES[version_2]}}}Envelope", what="OVF", hint=_HINT)
    systems = list(_named(root, "VirtualSystem"))
    if len(systems) != 1 or any(True for _ in _named(root, "VirtualSystemCollection")):
        raise UsageError(
            "the OVF does not describe exactly one machine",
            hint="export each machine by itself",
        )
    hardware = next(_named(systems[0], "VirtualHardwareSection"), None)
    if hardware is None:
        raise UsageError("the OVF describes no hardware", hint=_HINT)
    items = [_fields(item) for item in hardware if _local(item) in _ITEMS]
    cards = [item for item in items if item.get("ResourceType") == _NETWORK_CARD]
    efi = _is_efi(systems[0])
    return Appliance(
        memory_mib=_memory_mib(items),
        cpus=_cpus(items),
        efi=efi,
        secure_boot=efi and _config(systems[0], "bootOptions.efiSecureBootEnabled") == "true",
        windows=_is_windows(systems[0]),
        files=tuple(_files(root, items)),
        networks=tuple(_network(card) for card in cards[:MAX_NETWORK_CARDS]),
        notes=tuple(_notes(items, len(cards))),
    )


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _named(parent: ET.Element, name: str) -> Iterator[ET.Element]:
    return (element for element in parent.iter() if _local(element) == name)


def _attribute(element: ET.Element, name: str) -> str:
    found = (value for key, value in element.attrib.items() if key.rpartition("}")[2] == name)
    return next(found, "")


def _fields(item: ET.Element) -> dict[str, str]:
    return {_local(child): (child.text or "").strip() for child in item}


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _memory_mib(items: list[dict[str, str]]) -> int:
    for item in items:
        if item.get("ResourceType") == _MEMORY:
            unit = _UNITS.get(" ".join(item.get("AllocationUnits", "").lower().split()), MIB)
            size_mib = (_number(item.get("VirtualQuantity", "")) or 0) * unit // MIB
            if 0 < size_mib < 1 << 24:
                return size_mib
    raise UsageError("the OVF says no size of memory", hint=_HINT)


def _cpus(items: list[dict[str, str]]) -> int:
    wanted = [item for item in items if item.get("ResourceType") == _CPU]
    count = _number(wanted[0].get("VirtualQuantity", "")) if wanted else None
    return count if count is not None and 0 < count <= 1024 else 1


def _files(root: ET.Element, items: list[dict[str, str]]) -> Iterator[str]:
    """In the order of controllers, and of the places on them."""
    files = {_attribute(file, "id"): file for file in _named(root, "File")}
    disks = {_attribute(disk, "diskId"): disk for disk in _named(root, "Disk")}
    drives = [item for item in items if item.get("ResourceType") == _DISK]
    if not 0 < len(drives) <= MAX_DISKS:
        raise UsageError(f"the OVF describes {len(drives)} disks, not 1 to {MAX_DISKS}")
    seen = set()
    for drive in sorted(drives, key=_place):
        named = _DISK_OF.fullmatch(drive.get("HostResource", ""))
        disk = disks.get(named[1]) if named else None
        file = files.get(_attribute(disk, "fileRef")) if disk is not None else None
        if disk is None or file is None:
            raise UsageError("the OVF describes a disk without a file", hint=_HINT)
        name = _plain_name(disk, file)
        if name in seen:
            raise UsageError(f"the OVF has two disks in the file {name}", hint=_HINT)
        seen.add(name)
        yield name


def _place(drive: Mapping[str, str]) -> tuple[str, int]:
    return drive.get("Parent", "").rjust(15), _number(drive.get("AddressOnParent", "")) or 0


def _plain_name(disk: ET.Element, file: ET.Element) -> str:
    name = _attribute(file, "href")
    if not _FILE.fullmatch(name):
        raise UsageError(
            f"the OVF names a file elsewhere: {printable(name, 80)}",
            hint="put the files beside it, under plain names",
        )
    if _attribute(disk, "parentRef"):
        raise UsageError(f"{name} holds only what changed since another disk", hint=_HINT)
    if _attribute(file, "compression") not in ("", "identity") or _attribute(file, "chunkSize"):
        raise UsageError(f"{name} is compressed or in pieces", hint="unpack it, then import")
    return name


def _network(card: Mapping[str, str]) -> str:
    name = card.get("Connection", "")
    return name if _NETWORK.fullmatch(name) else ""


def _is_efi(system: ET.Element) -> bool:
    told = [_attribute(firmware, "type") for firmware in _named(system, "Firmware")]
    return _config(system, "firmware") == "efi" or any(kind.startswith("EFI") for kind in told)


def _config(system: ET.Element, key: str) -> str:
    for config in _named(system, "Config"):
        if _attribute(config, "key") == key:
            return _attribute(config, "value")
    return ""


def _is_windows(system: ET.Element) -> bool:
    section = next(_named(system, "OperatingSystemSection"), None)
    if section is None:
        return False
    words = [_attribute(section, "osType"), *(child.text or "" for child in section)]
    return any(_WINDOWS.match(word.strip().removeprefix("Microsoft ")) for word in words)


def _notes(items: list[dict[str, str]], cards: int) -> Iterator[str]:
    if cards > MAX_NETWORK_CARDS:
        yield f"only {MAX_NETWORK_CARDS} of {cards} network cards are taken over"
    known = {_CPU, _MEMORY, _NETWORK_CARD, _DISK, "5", "6", "20", "23", "24"}
    other = [item for item in items if item.get("ResourceType") not in known]
    for item in other[:20]:
        yield printable(f"left out: {item.get('ElementName') or 'a device'}", 120)
