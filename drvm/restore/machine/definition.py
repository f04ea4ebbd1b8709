"""The definition of a restored machine: rebuilt from an allow list, never edited.

The original comes out of a repository and is hostile until checked (invariant 7): whoever can
write there could otherwise run programs, read files or reach devices on the host that restores.
So a new tree is built of what a guest needs to find its machine again; everything that names
something of a host is made anew or left out, and said.
"""

from __future__ import annotations

import re
import secrets
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from drvm.core.errors import RestoreError
from drvm.core.ids import is_uuid, is_vm_name
from drvm.core.text import printable
from drvm.restore.machine.allowlist import Copier, shown_name
from drvm.restore.machine.devices import DeviceBuilder
from drvm.restore.machine.disks import DiskImage, check_images
from drvm.restore.machine.firmware import build_os
from drvm.restore.machine.machine_rules import (
    HOST_BOUND,
    KVM_ONLY_FEATURES,
    KVM_ONLY_TIMERS,
    MACHINE,
    SMBIOS_ENTRIES,
)
from drvm.restore.machine.nics import NetworkUse, renew_macs, split_network
from drvm.restore.machine.processor import build_cpu, chosen_cpu
from drvm.restore.machine.source import parse
from drvm.restore.machine.values import TOKEN, rule

VirtType = Literal["kvm", "qemu"]

_OSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
_OSINFO_TAG = f"{{{_OSINFO}}}libosinfo"
_OS_TAG = f"{{{_OSINFO}}}os"
_OS_ID = re.compile(r"https?://[a-z0-9.-]{1,64}(/[A-Za-z0-9._-]{1,64}){1,4}", re.ASCII)
_TAGS_TAG = "{urn:drvm:tags}tags"
_TAGS = re.compile(r"[A-Za-z0-9._-]{1,64}([ \t\n]+[A-Za-z0-9._-]{1,64}){0,63}", re.ASCII)
_MAX_TITLE = 256
_MAX_DESCRIPTION = 16 * 1024
_MAX_SMBIOS = 1024

ET.register_namespace("libosinfo", _OSINFO)
ET.register_namespace("drvm", "urn:drvm:tags")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the restored machine is. A clone has a name and UUID of its own and no old MAC; a
    replacement and a drill keep all three."""

    name: str
    uuid: str
    keep_macs: bool


@dataclass(frozen=True, slots=True)
class DefinitionSpec:
    """What the target decides.

    ``disks``: target -> restored image; disks that are not in it are left out, and said.
    ``networks``: name of a network or bridge of the original (or the device below a macvtap
    card) -> ``NAME``, ``network:NAME`` or ``bridge:NAME`` there.
    ``isolate_to``: a drill's network; every card goes there, and nothing else leads out.
    ``nvram_path``: where the restored NVRAM lies; ``None`` lets libvirt make an empty one.
    ``loader``: the file of a UEFI firmware there, instead of libvirt's choice.
    ``tpm_state``: the state of its emulated TPM is put in place, so the machine does not begin
    with an empty one.
    ``virt_type``: ``qemu`` where the target has no KVM; ``None`` keeps the original's.
    ``machine``, ``cpu``: the operator's own choice instead of the original's; ``cpu`` is a mode
    (``host-model``, ``host-passthrough``, ``maximum``) or the name of a model.
    ``taken_macs``: addresses that others have there (lower case): a clone gets none of them.
    """

    identity: Identity
    disks: Mapping[str, DiskImage]
    networks: Mapping[str, str] = field(default_factory=dict)
    isolate_to: str | None = None
    nvram_path: str | None = None
    loader: str | None = None
    tpm_state: bool = False
    virt_type: VirtType | None = None
    machine: str | None = None
    cpu: str | None = None
    taken_macs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Definition:
    """``dropped`` and ``changed`` are lines for people, safe to print and bounded.
    ``networks`` are those that must exist on the target."""

    xml: str
    dropped: tuple[str, ...]
    changed: tuple[str, ...]
    networks: tuple[NetworkUse, ...]


def random_mac() -> str:
    """In QEMU's range, 24 random bits."""
    return ":".join(["52", "54", "00", *(f"{byte:02x}" for byte in secrets.token_bytes(3))])


def rebuild(
    original_xml: str, spec: DefinitionSpec, *, new_mac: Callable[[], str] = random_mac
) -> Definition:
    """A definition of the same guest hardware on the target of ``spec``.

    Nothing in it names a file, device or network of the original host, or, for a clone, its UUID
    and MACs. Raises ``RestoreError`` for an original that is no QEMU/KVM domain or can't be read,
    and for a restored image that no disk of it claims.
    """
    _check(spec)
    original = parse(original_xml)
    virt_type = original.get("type", "")
    if virt_type not in ("kvm", "qemu"):
        raise RestoreError(
            f"a domain of type {printable(virt_type, 40)!r} can't be restored",
            hint="drvm restores QEMU and KVM machines",
        )
    return _Rebuilder(original, spec, new_mac).build()


def _check(spec: DefinitionSpec) -> None:
    name = spec.identity.name
    if not is_vm_name(name):
        raise RestoreError(
            f"{printable(name, 80)!r} can't be the name of a restored machine",
            hint="give another one with --name: letters, digits and . _ + @ -",
        )
    if not is_uuid(spec.identity.uuid):
        raise RestoreError(
            f"{printable(spec.identity.uuid, 80)!r} is not a UUID", hint="use --clone for a new one"
        )
    check_images(spec.disks)
    if spec.cpu is not None and not TOKEN.fullmatch(spec.cpu):
        raise RestoreError(f"{printable(spec.cpu, 80)!r} is not the name of a CPU model")
    if spec.machine is not None and not TOKEN.fullmatch(spec.machine):
        raise RestoreError(f"{printable(spec.machine, 80)!r} is not a machine type")
    if spec.isolate_to is not None:
        split_network(spec.isolate_to, "network")


class _Rebuilder:
    """One rebuilding: the original, what the target decides, and the notes."""

    def __init__(
        self, original: ET.Element, spec: DefinitionSpec, new_mac: Callable[[], str]
    ) -> None:
        self._original = original
        self._spec = spec
        renewals: dict[str, str] = {}
        if not spec.identity.keep_macs:
            renewals.update(renew_macs(original.find("devices"), new_mac, spec.taken_macs))
        old_uuid = _uuid_of(original)
        if old_uuid is not None and old_uuid != spec.identity.uuid:
            renewals[old_uuid] = spec.identity.uuid
            renewals[old_uuid.replace("-", "")] = spec.identity.uuid.replace("-", "")
        self._copier = Copier(renewals)
        self._devices = DeviceBuilder(
            spec.disks, spec.networks, spec.isolate_to, self._copier, tpm_state=spec.tpm_state
        )
        self._virt_type: str = original.get("type", "")
        if spec.virt_type is not None:
            self._virt_type = spec.virt_type
        self._loses_kvm = original.get("type") == "kvm" and self._virt_type == "qemu"
        self._special: Mapping[str, Callable[[ET.Element], ET.Element | None]] = {
            "title": self._title,
            "description": self._description,
            "metadata": self._metadata,
            "genid": self._genid,
            "os": self._os,
            "sysinfo": self._sysinfo,
            "devices": self._devices.build,
            "cpu": self._cpu,
        }

    def build(self) -> Definition:
        domain = ET.Element("domain", {"type": self._virt_type})
        ET.SubElement(domain, "name").text = self._spec.identity.name
        ET.SubElement(domain, "uuid").text = self._spec.identity.uuid
        seen = {"name", "uuid"}
        for child in self._original:
            tag = child.tag
            if tag in seen and tag != "sysinfo":
                if tag not in ("name", "uuid"):
                    self._copier.dropped.add(f"{tag} (one more than there may be)")
                continue
            made = self._top_level(child)
            if made is not None:
                seen.add(tag)
                domain.append(made)
        if self._spec.cpu is not None and "cpu" not in seen:
            domain.append(chosen_cpu(self._spec.cpu))
        self._check_whole(domain)
        self._adapt(domain)
        ET.indent(domain)
        return Definition(
            ET.tostring(domain, encoding="unicode") + "\n",
            self._copier.dropped.lines(),
            self._copier.changed.lines(),
            tuple(self._devices.networks),
        )

    def _top_level(self, child: ET.Element) -> ET.Element | None:
        if (special := self._special.get(child.tag)) is not None:
            return special(child)
        isolated = self._spec.isolate_to is not None
        if child.tag in MACHINE and not (isolated and child.tag in HOST_BOUND):
            return self._copier.element(child, MACHINE[child.tag], child.tag)
        self._copier.leave_out(child, shown_name(child.tag))
        return None

    def _check_whole(self, domain: ET.Element) -> None:
        """What libvirt would refuse only after all disks have been written."""
        for needed in ("memory", "os", "devices"):
            if domain.find(needed) is None:
                raise RestoreError(
                    f"the domain XML has no usable <{needed}>",
                    hint="restore its disks to a folder with --output, or take another point",
                )
        if missing := sorted(set(self._spec.disks) - self._devices.disks):
            raise RestoreError(
                f"the domain XML has no disk {', '.join(missing)}",
                hint="restore its disks to a folder with --output, or take another point",
            )

    def _adapt(self, domain: ET.Element) -> None:
        """Take out of the new tree what only KVM gives, where there is none."""
        if not self._loses_kvm:
            return
        self._copier.changed.add("without KVM: the guest runs emulated, and slowly")
        for parent in domain.iterfind("features"):
            for child in [child for child in parent if child.tag in KVM_ONLY_FEATURES]:
                parent.remove(child)
        for parent in domain.iterfind("clock"):
            for child in [child for child in parent if child.get("name") in KVM_ONLY_TIMERS]:
                parent.remove(child)

    def _title(self, source: ET.Element) -> ET.Element | None:
        """One line, as libvirt wants it."""
        line = " ".join((source.text or "").split())
        return self._prose("title", line, _MAX_TITLE)

    def _description(self, source: ET.Element) -> ET.Element | None:
        return self._prose("description", source.text or "", _MAX_DESCRIPTION)

    def _prose(self, tag: str, text: str, max_chars: int) -> ET.Element | None:
        clean = self._copier.prose(text, tag, max_chars=max_chars)
        if not clean.strip():
            return None
        made = ET.Element(tag)
        made.text = clean
        return made

    def _metadata(self, source: ET.Element) -> ET.Element | None:
        """Only which operating system it is, and the tags that drvm's policies choose by: the rest
        belongs to the tools of the old host."""
        rules = {
            _OSINFO_TAG: rule({_OS_TAG: rule(need="id", id=_OS_ID)}),
            _TAGS_TAG: rule(text=_TAGS),
        }
        made = ET.Element("metadata")
        self._copier.children(source, made, rules, "metadata")
        return made if len(made) else None

    def _genid(self, source: ET.Element) -> ET.Element:
        """New on every restore: it tells the guest (Active Directory above all) that it was set
        back in time. "Virtual Machine Generation ID", Microsoft, and libvirt's ``genid``."""
        self._copier.changed.add("genid: a new one, as the guest is set back in time")
        return ET.Element("genid")

    def _os(self, source: ET.Element) -> ET.Element | None:
        return build_os(
            source,
            machine=self._spec.machine,
            nvram_path=self._spec.nvram_path,
            loader=self._spec.loader,
            copier=self._copier,
        )

    def _cpu(self, source: ET.Element) -> ET.Element | None:
        chosen = self._spec.cpu or ("maximum" if self._loses_kvm else None)
        return build_cpu(source, chosen, self._copier)

    def _sysinfo(self, source: ET.Element) -> ET.Element | None:
        """SMBIOS texts; firmware configuration (``fwcfg``) can name files, and is left out."""
        if source.get("type") != "smbios":
            self._copier.dropped.add(f"sysinfo {source.get('type', '')}")
            return None
        made = ET.Element("sysinfo", {"type": "smbios"})
        for group in source:
            if group.tag not in SMBIOS_ENTRIES and group.tag != "oemStrings":
                self._copier.dropped.add(f"sysinfo/{group.tag}")
                continue
            table = ET.SubElement(made, group.tag)
            for entry in group:
                self._smbios_entry(entry, group.tag, table)
        return made

    def _smbios_entry(self, entry: ET.Element, group: str, table: ET.Element) -> None:
        name = entry.get("name")
        allowed = SMBIOS_ENTRIES.get(group)
        if entry.tag != "entry" or (name is not None if allowed is None else name not in allowed):
            self._copier.dropped.add(f"sysinfo/{group} {entry.tag}")
            return
        made = ET.SubElement(table, "entry")
        if name is not None:
            made.set("name", name)
        if (group, name) == ("system", "uuid"):
            made.text = self._spec.identity.uuid
            return
        line = " ".join((entry.text or "").split())
        made.text = self._copier.prose(line, f"sysinfo/{group}", max_chars=_MAX_SMBIOS)


def _uuid_of(original: ET.Element) -> str | None:
    try:
        return str(uuid.UUID(original.findtext("uuid", "").strip()))
    except ValueError:
        return None
