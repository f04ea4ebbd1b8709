"""Reading what libvirt says of a host: pure functions over XML that is checked as it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree.ElementTree import Element, ParseError, tostring

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.core.errors import HostError
from drvm.host.model import HostCapabilities
from drvm.host.storage import Volume

MAX_XML_CHARS = 4 * 1024 * 1024
_OPEN_VSWITCH = "ovs-system"
_OWNER = re.compile(r"\+?([0-9]{1,10}):\+?([0-9]{1,10})", re.ASCII)


def parse(text: str, root: str) -> Element:
    """The document element, which must be a ``root``; else ``HostError``."""
    if len(text) > MAX_XML_CHARS:
        raise HostError(f"<{root}> of {len(text)} characters is not believed")
    try:
        element: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"<{root}> can't be read: {problem}") from None
    if element.tag != root:
        raise HostError(f"<{root}> expected, <{element.tag[:40]}> found")
    return element


def with_cpu_of(saved_xml: str, domain_xml: str) -> str:
    """``domain_xml`` with the ``<cpu>`` of the domain that was saved, or without any."""
    saved, domain = parse(saved_xml, "domain"), parse(domain_xml, "domain")
    for cpu in domain.findall("cpu"):
        domain.remove(cpu)
    domain.extend(saved.findall("cpu")[:1])
    return tostring(domain, encoding="unicode")


def capabilities(host_xml: str, domain_xml: str) -> HostCapabilities:
    """From ``virConnectGetCapabilities`` and ``virConnectGetDomainCapabilities`` for x86_64."""
    host = parse(host_xml, "capabilities")
    machines: set[str] = set()
    virt_types: set[str] = set()
    for arch in host.iterfind("./guest/arch[@name='x86_64']"):
        machines.update(m.text for m in arch.iter("machine") if m.text)
        machines.update(
            m.attrib["canonical"] for m in arch.iter("machine") if "canonical" in m.attrib
        )
        virt_types.update(d.attrib["type"] for d in arch.iterfind("domain") if "type" in d.attrib)
    firmwares = {
        value.text
        for value in parse(domain_xml, "domainCapabilities").iterfind(
            "./os/enum[@name='firmware']/value"
        )
        if value.text
    }
    return HostCapabilities(
        arch=host.findtext("./host/cpu/arch") or "unknown",
        machines=frozenset(machines),
        virt_types=frozenset(virt_types),
        firmwares=frozenset(firmwares | {"bios"}),
    )


def qemu_user(host_xml: str) -> tuple[int, int] | None:
    """(uid, gid) from what libvirt says of its own access control: ``+64055:+109``."""
    for model in parse(host_xml, "capabilities").iterfind("./host/secmodel"):
        if model.findtext("model") == "dac":
            for label in model.iterfind("baselabel"):
                if (found := _OWNER.fullmatch(label.text or "")) is not None:
                    return int(found[1]), int(found[2])
    return None


def pool_kind_and_path(pool_xml: str) -> tuple[str, str]:
    """A pool's type and its target directory (empty where it has none)."""
    pool = parse(pool_xml, "pool")
    return pool.attrib.get("type", "unknown"), pool.findtext("./target/path") or ""


def bridges(interface_xmls: Iterable[str]) -> frozenset[str]:
    """The names of the bridges among a host's interfaces. Where Open vSwitch is at work all names:
    libvirt does not know its bridges from other devices."""
    names, found = set(), set()
    for xml in interface_xmls:
        interface = parse(xml, "interface")
        names.add(name := interface.attrib.get("name", ""))
        if interface.attrib.get("type") == "bridge":
            found.add(name)
    return frozenset(names if _OPEN_VSWITCH in names else found)


def source_index(domain_xml: str, target: str) -> int:
    """libvirt's number of the image that one disk of a live domain writes to; QEMU's names are
    made of it."""
    for disk in parse(domain_xml, "domain").iterfind("./devices/disk"):
        name, source = disk.find("target"), disk.find("source")
        if name is not None and name.attrib.get("dev") == target and source is not None:
            index = source.attrib.get("index", "")
            if index.isascii() and index.isdigit():
                return int(index)
    raise HostError(f"libvirt does not say which image disk {target[:40]} has")


def mirror(domain_xml: str, target: str) -> tuple[str, bool] | None:
    """The ``<mirror>`` of one disk of a live domain: its job and whether it is ready to pivot."""
    for disk in parse(domain_xml, "domain").iterfind("./devices/disk"):
        name = disk.find("target")
        found = disk.find("mirror")
        if name is not None and name.attrib.get("dev") == target and found is not None:
            return found.attrib.get("job", "copy"), found.attrib.get("ready") == "yes"
    return None


def volume(volume_xml: str) -> Volume:
    found = parse(volume_xml, "volume")
    kind = found.attrib.get("type", "file")
    size = found.findtext("./physical") or found.findtext("./capacity") or ""
    allocated = found.findtext("./allocation") or "0"
    path = found.findtext("./target/path") or ""
    if not (size.isdecimal() and allocated.isdecimal() and path.startswith("/")):
        raise HostError("a volume without a size or a path can't be used")
    name = found.findtext("./name") or ""
    return Volume(name, path, kind == "file", int(size), int(allocated))
