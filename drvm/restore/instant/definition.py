"""The definition of a machine whose disks lie over an NBD export, and back again. Pure.

libvirt's ``formatdomain``, "Hard drives": ``<backingStore>`` and the policies of ``<driver>``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from pathlib import Path

from drvm.restore.instant.record import BootDisk
from drvm.restore.machine.source import parse

_STOP = {"error_policy": "stop", "rerror_policy": "stop"}
"""A guest whose disk can't be read stands still until it can, and does not see an error."""


def over_export(xml: str, socket: Path, targets: Collection[str]) -> str:
    """``xml``, rebuilt by us, with each of these disks over the export of its name."""
    domain = parse(xml)
    for name, disk in _disks(domain):
        if name not in targets:
            continue
        driver, source = disk.find("driver"), disk.find("source")
        assert driver is not None and source is not None, "rebuilt disks have both"
        driver.attrib.update(_STOP)
        store = ET.Element("backingStore", {"type": "network"})
        ET.SubElement(store, "format", {"type": "raw"})
        below = ET.SubElement(store, "source", {"protocol": "nbd", "name": name})
        ET.SubElement(below, "host", {"transport": "unix", "socket": str(socket)})
        ET.SubElement(store, "backingStore")
        disk.insert(list(disk).index(source) + 1, store)
    return _text(domain)


def policies(xml: str, target: str) -> tuple[str, str]:
    """(error, rerror) of a disk, empty where the definition does not say."""
    for name, disk in _disks(parse(xml)):
        driver = disk.find("driver")
        if name == target and driver is not None:
            return driver.get("error_policy", ""), driver.get("rerror_policy", "")
    return "", ""


def unfinished(xml: str, socket: Path) -> frozenset[str]:
    """The disks that have an export of ``socket`` anywhere below them."""
    return frozenset(
        name
        for name, disk in _disks(parse(xml))
        if any(host.get("socket") == str(socket) for host in disk.iter("host"))
    )


def plain(xml: str, socket: Path, disks: Collection[BootDisk]) -> str:
    """``xml`` as libvirt gives it, with nothing of ours in it; itself where there is nothing."""
    domain = parse(xml)
    before = {disk.target: disk for disk in disks}
    changed = False
    for name, disk in _disks(domain):
        store, driver = disk.find("backingStore"), disk.find("driver")
        if name not in before or driver is None:
            continue
        if store is not None and any(h.get("socket") == str(socket) for h in store.iter("host")):
            disk.remove(store)
            changed = True
        for policy in _STOP:
            value = getattr(before[name], policy)
            if driver.get(policy, "") != value:
                driver.attrib.pop(policy, None)
                driver.attrib.update({policy: value} if value else {})
                changed = True
    return _text(domain) if changed else xml


def _disks(domain: ET.Element) -> Iterator[tuple[str, ET.Element]]:
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        yield ("" if target is None else target.get("dev", "")), disk


def _text(domain: ET.Element) -> str:
    return ET.tostring(domain, encoding="unicode") + "\n"
