"""The drilled machine's serial console, kept in a file of the drill's.

libvirt writes the log (virtlogd, which keeps 2 MiB and three older parts). The definition is the
rebuilt one: its consoles are pseudo-terminals without any log.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from drvm.drill.checks.base import Check
from drvm.restore.machine.definition import Definition
from drvm.restore.machine.source import parse

NAME = "console.log"
_ADDED = "serial: a port was added, which the original has none of, to see what is written to it"


def with_console(
    definition: Definition, directory: Path, checks: Iterable[Check]
) -> tuple[Definition, Path | None]:
    """Where a check looks at the console, the first serial port is logged to a file in
    ``directory``; a machine without any gets one, which stands under ``changed``."""
    if not any("console" in check.needs for check in checks):
        return definition, None
    log = directory / NAME
    domain = parse(definition.xml)
    devices = domain.find("devices")
    assert devices is not None, "a rebuilt definition has devices"
    serial, changed = devices.find("serial"), definition.changed
    if serial is None:
        serial = ET.SubElement(devices, "serial", {"type": "pty"})
        ET.SubElement(serial, "target", {"port": "0"})
        changed = (*changed, _ADDED)
    serial.insert(0, ET.Element("log", {"file": str(log), "append": "off"}))
    ET.indent(domain)
    xml = ET.tostring(domain, encoding="unicode") + "\n"
    return dataclasses.replace(definition, xml=xml, changed=changed), log
