"""How the restored machine starts: its board, its firmware, its order of disks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from drvm.core.errors import RestoreError
from drvm.restore.machine.allowlist import Copier
from drvm.restore.machine.machine_rules import FIRMWARE_FEATURE, OS_CHILDREN
from drvm.restore.machine.values import TOKEN

_EFI_FILE = re.compile(r"ovmf|aavmf|edk2|efi", re.IGNORECASE)
_SECURE_FILE = re.compile(r"sec|\.ms\.", re.IGNORECASE)
"""Builds with secure boot: ``OVMF_CODE_4M.secboot.fd``, ``OVMF_CODE_4M.ms.fd``."""
_KERNEL_PARTS = ("kernel", "initrd", "cmdline", "dtb")


def build_os(
    source: ET.Element,
    *,
    machine: str | None,
    nvram_path: str | None,
    loader: str | None = None,
    copier: Copier,
) -> ET.Element | None:
    """``<os>`` anew; ``None`` if the original is no full virtual machine.

    UEFI is asked for by libvirt's firmware selection: the firmware is the target's own, and a path
    of the original could be any file there. ``loader`` is one that the caller has chosen.
    """
    old_type = source.find("type")
    if old_type is None or (old_type.text or "").strip() != "hvm":
        return None
    made = ET.Element("os")
    new_type = ET.SubElement(made, "type")
    new_type.text = "hvm"
    if TOKEN.fullmatch(arch := old_type.get("arch", "")):
        new_type.set("arch", arch)
    old_machine = old_type.get("machine", "")
    if machine is not None and machine != old_machine:
        copier.changed.add(f"machine: {machine} instead of {old_machine}")
    if TOKEN.fullmatch(chosen := machine or old_machine):
        new_type.set("machine", chosen)
    if loader is None:
        _add_firmware(source, made, copier)
    else:
        _add_loader(source, made, loader)
    if loader is not None or made.get("firmware") is not None:
        _add_nvram(made, nvram_path, copier)
    copier.children(
        source,
        made,
        OS_CHILDREN,
        "os",
        handled=frozenset({"type", "firmware", "loader", "nvram", *_KERNEL_PARTS}),
    )
    if gone := [part for part in _KERNEL_PARTS if source.find(part) is not None]:
        copier.dropped.add(
            f"os {', '.join(gone)} (files of the original host: it now boots from its disks)"
        )
    return made


def _add_loader(source: ET.Element, made: ET.Element, path: str) -> None:
    old = source.find("loader")
    loader = ET.SubElement(made, "loader", {"readonly": "yes", "type": "pflash"})
    if old is not None and old.get("secure") == "yes":
        loader.set("secure", "yes")
    loader.text = path


def _add_firmware(source: ET.Element, made: ET.Element, copier: Copier) -> None:
    loader = source.find("loader")
    loader_path = "" if loader is None else (loader.text or "").strip()
    efi = (
        source.get("firmware") == "efi"
        or source.find("nvram") is not None
        or (loader is not None and loader.get("type") == "pflash")
        or _EFI_FILE.search(loader_path) is not None
    )
    if not efi:
        if loader_path:
            copier.dropped.add("os/loader (a BIOS file of the original host)")
        return
    made.set("firmware", "efi")
    if loader_path:
        copier.changed.add("firmware: the target's own UEFI")
    secure = loader is not None and loader.get("secure") == "yes"
    features = ET.Element("firmware")
    for old in source.iterfind("firmware/feature"):
        feature = copier.element(old, FIRMWARE_FEATURE, "os/firmware/feature")
        if feature is not None and features.find(f"feature[@name='{feature.get('name')}']") is None:
            features.append(feature)
    named = features.find("feature[@name='secure-boot']") is not None
    plain = bool(loader_path) and _SECURE_FILE.search(loader_path) is None
    if not named and (secure or plain):
        # libvirt's selection prefers secure boot with enrolled keys, where nothing else is said:
        # a guest that is not signed would not start.
        wanted = "yes" if secure else "no"
        features.append(ET.Element("feature", {"enabled": wanted, "name": "secure-boot"}))
    if len(features):
        made.append(features)
    if secure:
        made.append(ET.Element("loader", {"secure": "yes"}))


def _add_nvram(made: ET.Element, nvram_path: str | None, copier: Copier) -> None:
    if nvram_path is None:
        copier.changed.add("nvram: empty, made by libvirt")
        return
    if not nvram_path.startswith("/") or not nvram_path.isprintable():
        raise RestoreError("the NVRAM needs a plain absolute path")
    ET.SubElement(made, "nvram").text = nvram_path
