"""A pull backup as libvirt's XML says it: asked for, and known again as drvm's own. Pure.

Source: libvirt's ``formatbackup``.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.snapshot.checkpoints import Hint
from drvm.snapshot.domainxml import MAX_XML_CHARS, Machine
from drvm.snapshot.journal import PullFiles


def backup_xml(machine: Machine, files: PullFiles, hints: Mapping[str, Hint]) -> str:
    """The request: each disk that has a scratch file, under its target as the export's name. A
    disk whose hint names a bitmap serves that bitmap too, under its own name."""
    root = Element("domainbackup", {"mode": "pull"})
    SubElement(root, "server", {"transport": "unix", "socket": files.socket})
    disks = SubElement(root, "disks")
    for disk in machine.disks:
        scratch = files.scratches.get(disk.target)
        if scratch is None:
            SubElement(disks, "disk", {"name": disk.target, "backup": "no"})
            continue
        attributes = {"name": disk.target, "backup": "yes", "type": "file"}
        attributes |= {"exportname": disk.target, "backupmode": "full"}
        bitmap = hints[disk.target].bitmap
        if bitmap is not None:
            attributes |= {"backupmode": "incremental", "incremental": bitmap}
            attributes |= {"exportbitmap": bitmap}
        element = SubElement(disks, "disk", attributes)
        SubElement(element, "driver", {"type": "qcow2"})
        SubElement(element, "scratch", {"file": scratch})
    return tostring(root, encoding="unicode")


def own_files(text: str) -> PullFiles | None:
    """What the backup job uses, if it is one of drvm's: all that it names bears the names that
    drvm makes, of one point. ``None`` for anybody else's, and for what is not understood."""
    if len(text) > MAX_XML_CHARS:
        return None
    try:
        root: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return None
    server = root.find("server")
    if root.tag != "domainbackup" or root.attrib.get("mode") != "pull" or server is None:
        return None
    scratches = {}
    for disk in root.iterfind("./disks/disk"):
        if disk.attrib.get("backup", "yes") != "no":
            scratch = disk.find("scratch")
            path = None if scratch is None else scratch.attrib.get("file")
            scratches[disk.attrib.get("name", "")] = path or ""
    files = PullFiles(server.attrib.get("socket", ""), scratches)
    return files if scratches and files.point_id else None
