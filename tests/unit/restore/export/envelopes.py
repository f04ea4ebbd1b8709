"""Is a folder what DSP0243 says of a package? Judged from the text of the standard, not by the
code under test."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml import ElementTree

from drvm.core.process import SystemProcesses

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
RASD = f"{{{_CIM}/CIM_ResourceAllocationSettingData}}"
VSSD = f"{{{_CIM}/CIM_VirtualSystemSettingData}}"
VMW = "{http://www.vmware.com/schema/ovf}"


def items(envelope: Element, resource_type: int) -> list[dict[str, str]]:
    """The fields of the hardware items of one CIM resource type."""
    found = [
        {child.tag.removeprefix(RASD): child.text or "" for child in item if RASD in child.tag}
        for item in envelope.iterfind(f".//{OVF}Item")
    ]
    return [fields for fields in found if fields["ResourceType"] == str(resource_type)]


def checked_envelope(ovf: Path) -> Element:
    """The tree of a description that is right, with its files beside it."""
    root: Element = ElementTree.fromstring(ovf.read_bytes())
    assert root.tag == f"{OVF}Envelope"
    order = ["References", "DiskSection", "NetworkSection", "VirtualSystem"]
    assert [child.tag for child in root] == [OVF + tag for tag in order]
    for section in root.iter():
        if section.tag.endswith("Section"):
            assert section[0].tag == f"{OVF}Info", "a section begins with its Info"
    files = {file.get(f"{OVF}id"): file for file in root.iterfind(f"{OVF}References/{OVF}File")}
    disks = {disk.get(f"{OVF}diskId"): disk for disk in root.iterfind(f".//{OVF}Disk")}
    assert len(files) == len(disks) == len(list(root.iterfind(f".//{OVF}Disk")))
    for disk in disks.values():
        _check_disk(disk, files.pop(disk.get(f"{OVF}fileRef")), ovf.parent)
    assert not files, "a file that no disk names"
    _check_hardware(root, set(disks))
    _check_digests(ovf, root.findall(f"{OVF}References/{OVF}File"))
    return root


def _check_disk(disk: Element, file: Element, directory: Path) -> None:
    href = file.get(f"{OVF}href", "")
    assert "/" not in href
    path = directory / href
    assert file.get(f"{OVF}size") == str(path.stat().st_size)
    argv = ["qemu-img", "info", "--output=json", "-f", path.suffix[1:], str(path)]
    told = json.loads(SystemProcesses().run(argv, timeout_s=60).stdout)
    assert disk.get(f"{OVF}capacity") == str(told["virtual-size"])
    assert disk.get(f"{OVF}capacityAllocationUnits") == "byte"
    assert re.match(r"https?://", disk.get(f"{OVF}format", ""))
    if path.suffix == ".vmdk":
        assert disk.get(f"{OVF}format", "").endswith("vmdk.html#streamOptimized")
        assert told["format-specific"]["data"]["create-type"] == "streamOptimized"


def _check_hardware(root: Element, disks: set[str | None]) -> None:
    section = root.find(f"{OVF}VirtualSystem/{OVF}VirtualHardwareSection")
    assert section is not None
    assert section.findtext(f"{OVF}System/{VSSD}VirtualSystemType")
    ids = []
    for item in section.iterfind(f"{OVF}Item"):
        fields = [child.tag for child in item if RASD in child.tag]
        assert fields == sorted(fields), "a sequence of the schema, sorted by name"
        assert item.findtext(f"{RASD}ElementName")
        ids.append(item.findtext(f"{RASD}InstanceID"))
    assert len(set(ids)) == len(ids)
    controllers = {one["InstanceID"] for kind in (5, 6, 20) for one in items(root, kind)}
    drives = items(root, 17)
    assert {drive["HostResource"] for drive in drives} == {f"ovf:/disk/{disk}" for disk in disks}
    assert {drive["Parent"] for drive in drives} <= controllers
    places = [(drive["Parent"], drive["AddressOnParent"]) for drive in drives]
    assert len(set(places)) == len(places)
    networks = {one.get(f"{OVF}name") for one in root.iterfind(f".//{OVF}Network")}
    assert {card["Connection"] for card in items(root, 10)} == networks


def _check_digests(ovf: Path, files: list[Element]) -> None:
    lines = ovf.with_suffix(".mf").read_text().splitlines()
    names = [ovf.name, *(file.get(f"{OVF}href", "") for file in files)]
    expected = [
        f"SHA256({name})= {hashlib.sha256((ovf.parent / name).read_bytes()).hexdigest()}"
        for name in names
    ]
    assert lines == expected
