"""``<devices>`` of a restored domain, each connection to the host made anew."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping

from drvm.restore.machine.allowlist import Copier, shown_name
from drvm.restore.machine.device_rules import (
    CHANNEL_TARGET,
    CHARDEV_TARGET,
    GRAPHICS_CHILDREN,
    GRAPHICS_KEYMAP,
    PCR_BANKS,
    PLAIN,
    RNG_CHILDREN,
    TPM_MODEL,
    TPM_VERSION,
    VSOCK_CHILDREN,
)
from drvm.restore.machine.disks import DiskImage, build_disk
from drvm.restore.machine.nics import NetworkUse, build_nic
from drvm.restore.machine.values import INDEX, VIRTIO, WHERE, YES_NO, one_of

_USUAL_EMULATOR = re.compile(
    r"/usr/(bin|libexec|lib/[a-z0-9_-]+)/(qemu-system-[a-z0-9_]+|qemu-kvm|kvm)", re.ASCII
)
_USB_ID = re.compile(r"0x[0-9a-fA-F]{4}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_SHARE_POLICY = one_of("allow-exclusive force-shared ignore")
_ATTACH = "virsh attach-device VM FILE --config gives it one of this host's"
_BACK = {
    "hostdev": f"a device of the original host; {_ATTACH}",
    "redirdev": f"a device of whoever looked at its screen; {_ATTACH}",
    "filesystem": f"a directory of the original host; {_ATTACH}",
    "shmem": f"memory that it shared on the original host; {_ATTACH}",
    "lease": "of the original host's lock manager",
    "smartcard": f"of the original host; {_ATTACH}",
}
"""How to get back what can't come with the point."""
_LOOPBACK = "127.0.0.1"
_RANDOM = "/dev/urandom"


class DeviceBuilder:
    """Builds the devices of one machine. ``networks`` and ``disks`` are known afterwards."""

    def __init__(
        self,
        images: Mapping[str, DiskImage],
        networks: Mapping[str, str],
        isolate_to: str | None,
        copier: Copier,
        *,
        tpm_state: bool,
    ) -> None:
        self.networks: dict[NetworkUse, None] = {}
        self.disks: set[str] = set()
        self._images = images
        self._map = networks
        self._isolate_to = isolate_to
        self._copier = copier
        self._tpm_state = tpm_state
        self._audio = False
        self._special: Mapping[str, Callable[[ET.Element], ET.Element | None]] = {
            "disk": self._disk,
            "interface": self._nic,
            "serial": self._chardev,
            "parallel": self._chardev,
            "console": self._chardev,
            "channel": self._channel,
            "graphics": self._graphics,
            "tpm": self._tpm,
            "rng": self._rng,
            "vsock": self._vsock,
            "audio": self._one_audio,
            "emulator": self._emulator,
        }

    def build(self, source: ET.Element) -> ET.Element:
        """In the order of the original: libvirt numbers what has no address by it."""
        devices = ET.Element("devices")
        for child in source:
            if (special := self._special.get(child.tag)) is not None:
                made = special(child)
            elif (rule := PLAIN.get(child.tag)) is not None:
                made = self._copier.element(child, rule, describe(child))
            else:
                hint = _BACK.get(child.tag)
                self._copier.dropped.add(describe(child) + (f" ({hint})" if hint else ""))
                made = None
            if made is not None:
                devices.append(made)
        return devices

    def _disk(self, source: ET.Element) -> ET.Element | None:
        return build_disk(source, self._images, self.disks, self._copier)

    def _nic(self, source: ET.Element) -> ET.Element | None:
        made = build_nic(
            source, networks=self._map, isolate_to=self._isolate_to, copier=self._copier
        )
        if made is None:
            return None
        nic, use = made
        if use is not None:
            self.networks[use] = None
        return nic

    def _chardev(self, source: ET.Element) -> ET.Element:
        """A pseudo-terminal, whatever file, socket or device it was."""
        device = ET.Element(source.tag, {"type": "pty"})
        if (kind := source.get("type", "")) != "pty":
            self._copier.changed.add(f"{source.tag}: a pty instead of {kind!r}")
        self._copier.children(
            source,
            device,
            {**WHERE, "target": CHARDEV_TARGET},
            source.tag,
            handled=frozenset({"source", "protocol"}),
        )
        return device

    def _channel(self, source: ET.Element) -> ET.Element | None:
        """A virtio-serial port on a socket that libvirt places, or SPICE's own."""
        target = source.find("target")
        if target is None:
            self._copier.dropped.add(describe(source))
            return None
        port = self._copier.element(target, CHANNEL_TARGET, f"{describe(source)} target")
        if port is None:
            return None
        kind = source.get("type", "")
        kept = kind if kind in ("unix", "spicevmc") else "unix"
        if kept != kind:
            self._copier.changed.add(f"channel {port.get('name')}: a socket instead of {kind!r}")
        channel = ET.Element("channel", {"type": kept})
        channel.append(port)
        handled = frozenset({"source", "target", "protocol"})
        self._copier.children(source, channel, WHERE, "channel", handled=handled)
        return channel

    def _graphics(self, source: ET.Element) -> ET.Element | None:
        """VNC or SPICE on loopback, on a port that libvirt finds, without a password."""
        kind = source.get("type", "")
        if kind not in ("vnc", "spice"):
            self._copier.dropped.add(describe(source))
            return None
        where = f"graphics {kind}"
        graphics = ET.Element("graphics", {"type": kind, "autoport": "yes", "listen": _LOOPBACK})
        if GRAPHICS_KEYMAP.fullmatch(keymap := source.get("keymap", "")):
            graphics.set("keymap", keymap)
        if _SHARE_POLICY.fullmatch(policy := source.get("sharePolicy", "")):
            graphics.set("sharePolicy", policy)
        if source.get("passwd") is not None:
            self._copier.dropped.add(f"{where} password (set a new one after the restore)")
        listens = {source.get("listen", _LOOPBACK)}
        listens.update(listen.get("address", _LOOPBACK) for listen in source.iterfind("listen"))
        if listens != {_LOOPBACK} or source.get("autoport") != "yes":
            self._copier.changed.add(f"{where}: listens on loopback, on a port that libvirt finds")
        ET.SubElement(graphics, "listen", {"type": "address", "address": _LOOPBACK})
        rules = GRAPHICS_CHILDREN if kind == "spice" else {}
        self._copier.children(source, graphics, rules, where, handled=frozenset({"listen"}))
        return graphics

    def _tpm(self, source: ET.Element) -> ET.Element | None:
        backend = source.find("backend")
        if backend is None or backend.get("type") != "emulator":
            self._copier.dropped.add("tpm (its secrets are in a device of the original host)")
            return None
        tpm = ET.Element("tpm")
        if TPM_MODEL.fullmatch(model := source.get("model", "")):
            tpm.set("model", model)
        made = ET.SubElement(tpm, "backend", {"type": "emulator"})
        if TPM_VERSION.fullmatch(version := backend.get("version", "")):
            made.set("version", version)
        persistent = backend.get("persistent_state", "")
        if YES_NO.fullmatch(persistent) and self._isolate_to is None:  # else it outlives the drill
            made.set("persistent_state", persistent)
        self._copier.children(backend, made, {"active_pcr_banks": PCR_BANKS}, "tpm/backend")
        self._copier.children(source, tpm, WHERE, "tpm", handled=frozenset({"backend"}))
        if not self._tpm_state:
            self._copier.changed.add(
                "tpm: not as of the point, which holds no state of it or goes to another machine: "
                "what is there stays, or else it is empty"
            )
        return tpm

    def _rng(self, source: ET.Element) -> ET.Element:
        rng = ET.Element("rng", {"model": "virtio"})
        if VIRTIO.fullmatch(model := source.get("model", "")):
            rng.set("model", model)
        old = source.find("backend")
        if old is not None and old.get("model") == "builtin":
            ET.SubElement(rng, "backend", {"model": "builtin"})
        else:
            ET.SubElement(rng, "backend", {"model": "random"}).text = _RANDOM
            if old is None or (old.text or "").strip() != _RANDOM:
                self._copier.changed.add(f"rng: fed by {_RANDOM}")
        self._copier.children(source, rng, RNG_CHILDREN, "rng", handled=frozenset({"backend"}))
        return rng

    def _vsock(self, source: ET.Element) -> ET.Element | None:
        """With a context id that libvirt finds; none in isolation: it is a way to the host."""
        if self._isolate_to is not None:
            self._copier.dropped.add("vsock")
            return None
        vsock = ET.Element("vsock")
        if VIRTIO.fullmatch(model := source.get("model", "")):
            vsock.set("model", model)
        cid = source.find("cid")
        if cid is None or cid.get("auto") != "yes":
            self._copier.changed.add("vsock: a context id that libvirt finds")
        ET.SubElement(vsock, "cid", {"auto": "yes"})
        self._copier.children(source, vsock, VSOCK_CHILDREN, "vsock", handled=frozenset({"cid"}))
        return vsock

    def _one_audio(self, source: ET.Element) -> ET.Element | None:
        kind = source.get("type", "")
        kept = kind if kind in ("none", "spice") else "none"
        if self._audio or kept != kind:
            self._copier.dropped.add(describe(source))
        if self._audio:
            return None
        self._audio = True
        return ET.Element("audio", {"id": "1", "type": kept})

    def _emulator(self, source: ET.Element) -> None:
        """The target knows its own; only an unusual one is worth a word."""
        if not _USUAL_EMULATOR.fullmatch((source.text or "").strip()):
            self._copier.dropped.add("emulator (the target's own is used)")


def describe(device: ET.Element) -> str:
    """A device that is left out, in people's words: ``hostdev pci 0000:3b:00.0``."""
    words = [shown_name(device.tag)]
    words += [value for name in ("type", "model") if _WORD.fullmatch(value := device.get(name, ""))]
    if device.tag == "hostdev" and (place := _host_device(device)):
        words.append(place)
    return " ".join(words)


def _host_device(device: ET.Element) -> str:
    address = device.find("source/address")
    if address is not None and device.get("type") == "pci":
        parts = [address.get(name, "0x0") for name in ("domain", "bus", "slot", "function")]
        if all(INDEX.fullmatch(part) for part in parts):
            domain, bus, slot, function = (
                int(part, 16 if part.lower().startswith("0x") else 10) for part in parts
            )
            return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    ids = [device.find(f"source/{name}") for name in ("vendor", "product")]
    shown = [found.get("id", "") for found in ids if found is not None]
    if len(shown) == 2 and all(_USB_ID.fullmatch(text) for text in shown):
        return ":".join(text[2:] for text in shown)
    return ""
