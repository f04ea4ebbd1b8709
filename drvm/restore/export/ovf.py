"""A machine described for VMware and VirtualBox: an envelope by DMTF's DSP0243 (OVF 1.1)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drvm.restore.export.machine import ExportedMachine

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
_RASD = f"{_CIM}/CIM_ResourceAllocationSettingData"
_VSSD = f"{_CIM}/CIM_VirtualSystemSettingData"
_VMW = "http://www.vmware.com/schema/ovf"

for _prefix, _uri in (("ovf", _OVF), ("rasd", _RASD), ("vssd", _VSSD), ("vmw", _VMW)):
    ET.register_namespace(_prefix, _uri)

FORMATS: Mapping[str, str] = {
    "vmdk": "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized",
    "vdi": "https://www.virtualbox.org/manual/ch05.html#vdidetails",
    "vhdx": "https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx",
}
"""What ``ovf:format`` says: a URI that names the specification. VirtualBox knows its own VDI by
the file's suffix."""

_SYSTEM_TYPES = {"vdi": "virtualbox-2.2"}
_NEWEST_KNOWN = "vmx-14"
_SATA = {"vdi": "AHCI"}
_VMWARE_SATA = "vmware.sata.ahci"
_SATA_PORTS = 30
_SYSTEMS = {
    "linux": ("101", "otherLinux64Guest", "Linux, 64 bit"),
    "windows": ("1", "windows9Server64Guest", "Windows, 64 bit"),
    "other": ("102", "otherGuest64", "64 bit"),
}
"""Numbers as in ``CIM_OperatingSystem.OsType``, names as in VMware's ``GuestOsIdentifier``."""


@dataclass(frozen=True, slots=True)
class DescribedDisk:
    """``name``: of its file, which lies beside the description and has ``file_bytes``;
    ``size_bytes``: what the guest sees."""

    target: str
    name: str
    format: str
    size_bytes: int
    file_bytes: int


def envelope(machine: ExportedMachine, disks: Sequence[DescribedDisk]) -> bytes:
    """The text of the ``.ovf``."""
    root = ET.Element(_ovf("Envelope"))
    references = ET.SubElement(root, _ovf("References"))
    section = _section(root, "DiskSection", "Virtual disks")
    for number, disk in enumerate(disks, start=1):
        file = _add(references, "File", id=f"file{number}", href=disk.name)
        file.set(_ovf("size"), str(disk.file_bytes))
        _add(
            section,
            "Disk",
            diskId=f"vmdisk{number}",
            fileRef=f"file{number}",
            capacity=str(disk.size_bytes),
            capacityAllocationUnits="byte",
            format=FORMATS[disk.format],
        )
    section = _section(root, "NetworkSection", "Networks of the KVM host")
    for network in dict.fromkeys(machine.networks):
        named = _add(section, "Network", name=network)
        ET.SubElement(named, _ovf("Description")).text = f"The network {network}"
    system = _add(root, "VirtualSystem", id=machine.name)
    ET.SubElement(system, _ovf("Info")).text = "A virtual machine"
    ET.SubElement(system, _ovf("Name")).text = machine.name
    number_of, name_of, words = _SYSTEMS[machine.system]
    section = _section(system, "OperatingSystemSection", "The guest's operating system")
    section.set(_ovf("id"), number_of)
    section.set(f"{{{_VMW}}}osType", name_of)
    ET.SubElement(section, _ovf("Description")).text = words
    _hardware(system, machine, disks)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _hardware(system: ET.Element, machine: ExportedMachine, disks: Sequence[DescribedDisk]) -> None:
    section = _section(system, "VirtualHardwareSection", "Virtual hardware")
    image_format = disks[0].format if disks else "vmdk"
    about = ET.SubElement(section, _ovf("System"))
    for tag, text in (
        ("ElementName", "Virtual Hardware Family"),
        ("InstanceID", "0"),
        ("VirtualSystemIdentifier", machine.name),
        ("VirtualSystemType", _SYSTEM_TYPES.get(image_format, _NEWEST_KNOWN)),
    ):
        ET.SubElement(about, f"{{{_VSSD}}}{tag}").text = text
    for number, fields in enumerate(_items(machine, disks, image_format), start=1):
        item = ET.SubElement(section, _ovf("Item"))
        for tag, value in sorted({**fields, "InstanceID": number}.items()):
            ET.SubElement(item, f"{{{_RASD}}}{tag}").text = str(value)
        if fields["ResourceType"] == 3 and machine.cores_per_socket > 1:
            cores = ET.SubElement(item, f"{{{_VMW}}}CoresPerSocket", {_ovf("required"): "false"})
            cores.text = str(machine.cores_per_socket)
    if machine.efi:
        _config(section, "firmware", "efi")
        _config(section, "bootOptions.efiSecureBootEnabled", str(machine.secure_boot).lower())


def _items(
    machine: ExportedMachine, disks: Sequence[DescribedDisk], image_format: str
) -> Iterator[dict[str, str | int]]:
    """In the order of their ``InstanceID``; the schema wants the fields of each sorted by name."""
    yield {
        "AllocationUnits": "hertz * 10^6",
        "Description": "Number of Virtual CPUs",
        "ElementName": f"{machine.cpus} virtual CPU(s)",
        "ResourceType": 3,
        "VirtualQuantity": machine.cpus,
    }
    yield {
        "AllocationUnits": "byte * 2^20",
        "Description": "Memory Size",
        "ElementName": f"{machine.memory_mib} MB of memory",
        "ResourceType": 4,
        "VirtualQuantity": machine.memory_mib,
    }
    instance = 2
    for first in range(0, len(disks), _SATA_PORTS):
        controller = first // _SATA_PORTS
        yield {
            "Address": controller,
            "Description": "SATA Controller",
            "ElementName": f"SATA Controller {controller}",
            "ResourceSubType": _SATA.get(image_format, _VMWARE_SATA),
            "ResourceType": 20,
        }
        instance += 1
        parent = instance
        for port, disk in enumerate(disks[first : first + _SATA_PORTS]):
            yield {
                "AddressOnParent": port,
                "Description": f"Disk {disk.target}",
                "ElementName": f"Hard Disk {first + port + 1}",
                "HostResource": f"ovf:/disk/vmdisk{first + port + 1}",
                "Parent": parent,
                "ResourceType": 17,
            }
            instance += 1
    for number, network in enumerate(machine.networks):
        yield {
            "AddressOnParent": number,
            "AutomaticAllocation": "true",
            "Connection": network,
            "Description": f"E1000 ethernet adapter on {network}",
            "ElementName": f"Ethernet {number + 1}",
            "ResourceSubType": "E1000",
            "ResourceType": 10,
        }


def _config(section: ET.Element, key: str, value: str) -> None:
    attributes = {_ovf("required"): "false", f"{{{_VMW}}}key": key, f"{{{_VMW}}}value": value}
    ET.SubElement(section, f"{{{_VMW}}}Config", attributes)


def _section(parent: ET.Element, tag: str, info: str) -> ET.Element:
    section = ET.SubElement(parent, _ovf(tag))
    ET.SubElement(section, _ovf("Info")).text = info
    return section


def _ovf(tag: str) -> str:
    return f"{{{_OVF}}}{tag}"


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    qualified = {_ovf(name): value for name, value in attributes.items()}
    return ET.SubElement(parent, _ovf(tag), qualified)
