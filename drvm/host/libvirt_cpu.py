"""Whether a host gives a machine the processor that it asks for, in libvirt's own judgement."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, tostring

import libvirt

from drvm.core.errors import HostError, HostUnreachable
from drvm.host import libvirt_xml
from drvm.host.libvirt_connection import Connection
from drvm.host.model import CpuObstacle

_MAX_MODELS = 200
_MAX_REASON_CHARS = 400
_PREFIXES = ("internal error: ", "the CPU is incompatible with host CPU: ")


def obstacle(connection: Connection, domain_xml: str) -> CpuObstacle | None:
    """``domain_xml``: as it would be defined. A model that the machine wants unchecked
    (``check='none'``) is as good as any: QEMU leaves out what it can't give."""
    domain = libvirt_xml.parse(domain_xml, "domain")
    cpu = domain.find("cpu")
    if cpu is None:
        return None
    mode = cpu.attrib.get("mode", "custom")
    if mode == "custom" and (cpu.attrib.get("check") == "none" or cpu.find("model") is None):
        return None
    kind = domain.find("os/type")
    where = {} if kind is None else kind.attrib
    machine = (where.get("arch"), where.get("machine"), domain.attrib.get("type"))
    try:
        given: str = connection.call(
            lambda c: c.getDomainCapabilities(None, *machine), repeatable=True
        )
        modes, models = _usable(given)
        if mode != "custom":
            reason = "" if mode in modes else f"no {mode} there for such a machine"
        else:
            reason = connection.call(lambda c: _compare(c, machine, cpu), repeatable=True)
    except HostUnreachable:
        raise
    except HostError:
        return None  # no such machine at all: told by others
    return CpuObstacle(reason, (*modes, *models)) if reason else None


def _compare(connection: Any, machine: tuple[str | None, ...], cpu: Element) -> str:
    """Empty where it fits."""
    arch, kind, virt_type = machine
    flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        xml = tostring(cpu, encoding="unicode")
        connection.compareHypervisorCPU(None, arch, kind, virt_type, xml, flags)
    except libvirt.libvirtError as problem:
        words = " ".join((problem.get_error_message() or "").split())
        unknown = "Unknown CPU" in words
        if problem.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE and not unknown:
            raise
        for prefix in _PREFIXES:
            words = words.removeprefix(prefix)
        return words[:_MAX_REASON_CHARS] or "it is incompatible"
    return ""


def _usable(domain_capabilities: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modes other than custom, and the models that the host's processor can do."""
    tree = libvirt_xml.parse(domain_capabilities, "domainCapabilities")
    modes = tuple(
        name
        for mode in tree.iterfind("./cpu/mode[@supported='yes']")
        if (name := mode.attrib.get("name", "custom")) != "custom"
    )
    models = tree.iterfind("./cpu/mode[@name='custom']/model[@usable='yes']")
    return modes, tuple(m.text for _, m in zip(range(_MAX_MODELS), models, strict=False) if m.text)
