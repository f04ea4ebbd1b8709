"""Deleting a libvirt checkpoint, also one that has lost some of its bitmaps."""

from __future__ import annotations

import contextlib
from typing import Any
from xml.etree.ElementTree import tostring

import libvirt

from drvm.host import libvirt_xml


def delete(domain: Any, name: str) -> None:
    """The checkpoint and all bitmaps of it that are there; the machine must run.

    libvirt deletes all bitmaps of a checkpoint or none, and forgetting the checkpoint alone would
    leave those that are there in the images, where they keep internal snapshots from being
    reverted. So it is forgotten, and made known again for one disk after the other.
    """
    checkpoint = domain.checkpointLookupByName(name, 0)
    try:
        checkpoint.delete(0)
        return
    except libvirt.libvirtError:
        if not domain.isActive():
            raise
    text = checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE)
    singles = _singles(text)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    for single in singles:
        again = domain.checkpointCreateXML(single, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
        try:
            again.delete(0)
        except libvirt.libvirtError:
            with contextlib.suppress(libvirt.libvirtError):
                again.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _singles(text: str) -> list[str]:
    """The checkpoint's XML for each of its disks alone."""
    targets = [
        disk.attrib.get("name")
        for disk in libvirt_xml.parse(text, "domaincheckpoint").iterfind("./disks/disk")
        if disk.attrib.get("checkpoint") == "bitmap"
    ]
    found = []
    for target in targets:
        root = libvirt_xml.parse(text, "domaincheckpoint")
        for disk in root.iterfind("./disks/disk"):
            if disk.attrib.get("name") != target:
                disk.attrib["checkpoint"] = "no"
                disk.attrib.pop("bitmap", None)
        found.append(tostring(root, encoding="unicode"))
    return found
