"""Reading a domain XML that came out of a repository: hostile until it has passed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from drvm.core.errors import RestoreError
from drvm.core.text import printable
from drvm.core.units import KIB

MAX_BYTES = 1 << 22
"""As libvirt itself: its protocol carries no longer text (VIR_NET_MESSAGE_STRING_MAX)."""
MAX_DEPTH = 48
"""libvirt's own schema nests 9 deep."""
MAX_ATTRIBUTES = 64
MAX_ELEMENTS = 50_000

_HINT = (
    "the recovery point's definition can't be used; restore its disks to a folder with --output, "
    "or take another point"
)

_UNITS = {"b": 1, "bytes": 1}
_UNITS |= {
    spelling: base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for spelling, base in ((letter, KIB), (f"{letter}ib", KIB), (f"{letter}b", 1000))
}
"""libvirt's ``scaledInteger``: ``KB`` is 1000, ``K`` and ``KiB`` are 1024; in any case."""


class _BoundedBuilder(ET.TreeBuilder):
    """A tree builder that gives up on what no domain looks like, while it reads."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} elements")
        if self._elements > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements")
        if len(attrs) > MAX_ATTRIBUTES:
            raise ValueError(f"an element with more than {MAX_ATTRIBUTES} attributes")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag)


def parse(
    text: str, *, root: str = "domain", what: str = "domain XML", hint: str = _HINT
) -> ET.Element:
    """The tree of ``text``, whose outermost element must be a plain ``<root>``.

    At most 4 MiB, ``MAX_DEPTH`` deep; no DTD, no entities, no external references, no XInclude
    (it stays an unknown element). Comments and processing instructions are gone.
    ``what`` it is called where it can't be read, and ``hint`` what to do then.
    Raises ``RestoreError`` for everything else, and nothing but that.
    """
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise RestoreError(f"the {what} is not valid Unicode", hint=hint) from error
    if size_bytes > MAX_BYTES:
        raise RestoreError(f"the {what} is larger than {MAX_BYTES} bytes", hint=hint)
    parser = DefusedXMLParser(
        target=_BoundedBuilder(), forbid_dtd=True, forbid_entities=True, forbid_external=True
    )
    try:
        parser.feed(text)
        tree = parser.close()
    except (ET.ParseError, DefusedXmlException, ValueError) as error:
        reason = printable(str(error), 200)
        raise RestoreError(f"the {what} can't be read: {reason}", hint=hint) from error
    if not isinstance(tree, ET.Element) or tree.tag != root:
        raise RestoreError(f"the {what} is not a <{root}>", hint=hint)
    return tree


def memory_bytes(domain: ET.Element) -> int:
    """What the guest may take; 0 where its definition does not say it as libvirt does."""
    memory = domain.find("memory")
    text = "" if memory is None else (memory.text or "").strip()
    unit = "kib" if memory is None else memory.get("unit", "KiB").lower()
    return int(text) * _UNITS.get(unit, 0) if re.fullmatch(r"[0-9]{1,20}", text) else 0
