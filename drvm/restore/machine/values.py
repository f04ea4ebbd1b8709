"""The values that may stand in a rebuilt definition. None of them can hold a path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from drvm.restore.machine.allowlist import Pattern, Rule


def one_of(words: str) -> Pattern:
    """``"on off"`` -> a pattern for either."""
    return re.compile("|".join(re.escape(word) for word in words.split()))


NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)
SIGNED = re.compile(r"-?[0-9]{1,20}", re.ASCII)
COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
"""What libvirtd makes one by one before it judges a definition: 2147483647 CPUs end libvirtd 9.0,
4000000 take it 8 s (``tests/contract/test_restored_definition.py``). QEMU has 4096 at most."""
CONTROLLER = re.compile(r"[0-9]{1,3}", re.ASCII)
"""Those below it are made too: libvirtd 9.0 is busy for 7 s with a PCI bridge 9999, and for minutes
with a larger one."""
INDEX = re.compile(r"0[xX][0-9a-fA-F]{1,4}|[0-9]{1,5}", re.ASCII)
"""As in addresses: hexadecimal or decimal."""
PLACE = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
"""In the guest's memory."""
DOTTED = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){0,4}", re.ASCII)
"""The port of a USB device."""
TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
"""A CPU model, a feature, a machine type: libvirt looks it up, or QEMU does."""
CPUS = re.compile(r"[0-9,^-]{1,256}", re.ASCII)
ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}", re.ASCII)
"""``Europe/Berlin``; never absolute, no dots."""
UNIT = re.compile(r"(?i)(b|bytes|[kmgtpe](b|ib)?)", re.ASCII)
SERIAL = re.compile(r"[A-Za-z0-9_+ -][A-Za-z0-9_.+ -]{0,255}", re.ASCII)
WWN = re.compile(r"(0x)?[0-9a-fA-F]{16}", re.ASCII)
DISK_NAME = re.compile(r"(fd|hd|sd|ubd|vd|xvd)[a-z]{1,2}[0-9]{0,2}", re.ASCII)
"""``vda``, ``sdzz``: a number in letters. For ``sdzzzzzz`` libvirtd makes a million controllers."""
SCSI_TEXT = re.compile(r"[A-Za-z0-9_+ -][A-Za-z0-9_.+ -]{0,15}", re.ASCII)
KEYMAP = re.compile(r"[a-z]{2,3}(-[a-z]{2,3})?", re.ASCII)
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", re.ASCII)
PORT_NAME = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
"""Of a virtio-serial port: the guest finds it by this name, libvirt names its socket after it."""
USER_ALIAS = re.compile(r"ua-[A-Za-z0-9_-]{1,64}", re.ASCII)
GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
HV_VENDOR = re.compile(r"[A-Za-z0-9_ -][A-Za-z0-9_. -]{0,11}", re.ASCII)
YES_NO = one_of("yes no")
ON_OFF = one_of("on off")
VIRTIO = one_of("virtio virtio-transitional virtio-non-transitional")


def rule(
    children: Mapping[str, Rule] | None = None,
    *,
    text: Pattern | None = None,
    need: str = "",
    most: int = 1,
    anew: str = "",
    also: Mapping[str, Pattern] | None = None,
    **attributes: Pattern,
) -> Rule:
    """A rule, written short: the keywords that are left are attributes, as
    are those in ``also``."""
    return Rule(
        attributes={**attributes, **(also or {})},
        children=children or {},
        text=text,
        required=frozenset(need.split()),
        most=most,
        anew=frozenset(anew.split()),
    )


STATE = rule(state=ON_OFF)
SIZE = rule(text=NUMBER, unit=UNIT)
"""``<memory unit='KiB'>``."""

VIRTIO_OPTIONS: Mapping[str, Pattern] = {
    "iommu": ON_OFF,
    "ats": ON_OFF,
    "packed": ON_OFF,
    "page_per_vq": ON_OFF,
}

_BUS = re.compile(r"0[xX][0-9a-fA-F]{1,2}|[0-9]{1,3}", re.ASCII)
ADDRESS = rule(
    {"zpci": rule(uid=INDEX, fid=PLACE)},
    need="type",
    type=one_of("pci drive virtio-serial ccid usb isa dimm spapr-vio virtio-mmio ccw unassigned"),
    domain=INDEX,
    bus=_BUS,
    slot=INDEX,
    function=INDEX,
    multifunction=ON_OFF,
    controller=CONTROLLER,
    target=INDEX,
    unit=INDEX,
    port=DOTTED,
    iobase=INDEX,
    irq=INDEX,
    base=PLACE,
    reg=PLACE,
    cssid=INDEX,
    ssid=INDEX,
    devno=INDEX,
)

WHERE: Mapping[str, Rule] = {
    "address": ADDRESS,
    "alias": rule(need="name", name=USER_ALIAS),
    "acpi": rule(index=NUMBER),
}
"""What every device may say about its place in the machine."""

BOOT = rule(need="order", order=NUMBER)
ROM = rule(enabled=YES_NO, bar=ON_OFF)


def device(
    children: Mapping[str, Rule] | None = None, *, need: str = "", **attributes: Pattern
) -> Rule:
    """A rule for a device, with its place in the machine."""
    return rule({**WHERE, **(children or {})}, need=need, most=1024, also=attributes)
