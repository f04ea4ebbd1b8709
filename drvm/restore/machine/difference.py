"""What a restore changes in a definition, shown to people without its secrets."""

from __future__ import annotations

import difflib
import re
import xml.etree.ElementTree as ET

from drvm.core.text import printable
from drvm.restore.machine.source import parse

_HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"passw|passphrase|secret|cookie|token|dhcert|session", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"passw|secret|token|key|credential|fw_cfg", re.IGNORECASE)
_PUBLIC_ATTRIBUTES = frozenset({"type", "usage", "uuid"})
"""Of ``<secret>``: they name a secret, and are none."""
_MAX_LINES = 4000
"""A comparison takes time with the square of it; a machine with 100 disks has 2000."""
_MAX_LINE_CHARS = 1000


def difference(original_xml: str, rebuilt_xml: str) -> str:
    """A unified difference, safe to print; empty where nothing but the order of attributes and
    white space differs. Raises ``RestoreError`` for XML that can't be read."""
    before, after = _lines(original_xml), _lines(rebuilt_xml)
    lines = difflib.unified_diff(before, after, "recovery point", "restored", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def redacted(xml: str) -> str:
    """A definition as people may see it: indented, passwords and other secrets hidden."""
    return "".join(f"{line}\n" for line in _lines(xml))


def _lines(xml: str) -> list[str]:
    tree = parse(xml)
    for element in tree.iter():
        _tidy(element)
        _redact(element)
    ET.indent(tree)
    lines = ET.tostring(tree, encoding="unicode").splitlines()
    shown = [printable(line, _MAX_LINE_CHARS) for line in lines[:_MAX_LINES]]
    if len(lines) > _MAX_LINES:
        shown.append(f"... {len(lines) - _MAX_LINES} more lines")
    return shown


def _tidy(element: ET.Element) -> None:
    """Attributes in one order; white space only where it is text."""
    for name, value in sorted(element.attrib.items()):
        del element.attrib[name]
        element.set(name, value)
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _redact(element: ET.Element) -> None:
    local = element.tag.rpartition("}")[2]
    secret_element = _SECRET_NAME.search(local) is not None
    if secret_element and element.text:
        element.text = _HIDDEN
    for name, value in element.attrib.items():
        secret = _SECRET_NAME.search(name) is not None
        secret = secret or (secret_element and name not in _PUBLIC_ATTRIBUTES)
        secret = secret or (local in ("arg", "env") and _SECRET_VALUE.search(value) is not None)
        if secret or (local == "env" and name == "value"):
            element.set(name, _HIDDEN)
    if local in ("cmdline", "entry") and element.text and _SECRET_VALUE.search(element.text):
        element.text = _HIDDEN
    if local == "sysinfo" and element.get("type") == "fwcfg":
        for entry in element:  # whole configurations, such as Ignition's, with all that is in them
            entry.text = _HIDDEN
