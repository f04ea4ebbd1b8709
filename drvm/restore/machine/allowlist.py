"""Copying what a rule names, and nothing else, out of a hostile XML tree.

The copy is a new tree: an element, attribute or text that no rule names can't get into it,
whatever it is. What stayed behind is written down for people.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

from drvm.core.text import printable

Pattern = re.Pattern[str]

MAX_NOTES = 200
"""A hostile definition must not flood the terminal: beyond this only the number is said."""

_NAMESPACES = {
    "http://libvirt.org/schemas/domain/qemu/1.0": "qemu",
    "http://www.w3.org/2001/XInclude": "xi",
}

_REASONS = {
    "qemu:commandline": "would run QEMU with any option, past libvirt",
    "qemu:override": "would set any property, past libvirt",
    "memoryBacking": "huge pages and memory files are the host's: set them anew if needed",
    "numatune": "the nodes of the original host",
    "seclabel": "libvirt labels the new files itself",
    "resource": "a cgroup of the original host",
    "tpm/backend/encryption": "a secret of the original host: the state is in plain text",
    "launchSecurity": "is bound to the processor of the original host",
}

_PATH_OR_URL = re.compile(r"(?P<url>https?://\S+)|(?<!\w)/+[^\s/]\S*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """What may stand in one element.

    ``attributes`` and ``text``: patterns for the whole value; what does not match is left out.
    ``required``: without these attributes the element makes no sense and is left out whole.
    ``most``: how many of its kind may stand side by side.
    ``anew``: attributes that the caller sets himself, so that nobody misses the old ones.
    """

    attributes: Mapping[str, Pattern] = field(default_factory=dict)
    children: Mapping[str, Rule] = field(default_factory=dict)
    text: Pattern | None = None
    required: frozenset[str] = frozenset()
    most: int = 1
    anew: frozenset[str] = frozenset()


class Notes:
    """What people are told about a rebuilt definition, bounded and safe to print."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._beyond = 0

    def add(self, line: str) -> None:
        if len(self._lines) < MAX_NOTES:
            self._lines.append(printable(line, 300))
        else:
            self._beyond += 1

    def lines(self) -> tuple[str, ...]:
        """Each once, in the order of the definition."""
        more = (f"and {self._beyond} more",) if self._beyond else ()
        return tuple(dict.fromkeys(self._lines)) + more


class Copier:
    """Copies by rule, giving every value that it copies its new identity.

    ``renewals`` maps old identifiers (UUID, MACs; lower case) to new ones: wherever one occurs in
    a copied value, in any case, the new one stands in the copy.
    """

    def __init__(self, renewals: Mapping[str, str]) -> None:
        self.dropped = Notes()
        self.changed = Notes()
        self._renewals = renewals
        self._old = (
            re.compile("|".join(map(re.escape, renewals)), re.IGNORECASE) if renewals else None
        )

    def renew(self, value: str) -> str:
        if self._old is None:
            return value
        return self._old.sub(lambda match: self._renewals[match[0].lower()], value)

    def element(self, source: ET.Element, rule: Rule, where: str) -> ET.Element | None:
        """The part of ``source`` that ``rule`` allows, or ``None`` where nothing useful is left.

        ``where`` names the element to people. Recursion is as deep as the rules, never deeper.
        """
        copy = ET.Element(source.tag)
        lost = []
        for name, value in source.attrib.items():
            pattern = rule.attributes.get(name)
            if pattern is not None and pattern.fullmatch(value):
                copy.set(name, self.renew(value))
            elif name not in rule.anew:
                lost.append(name)
        if missing := rule.required.difference(copy.keys()):
            self.dropped.add(f"{where} (its {', '.join(sorted(missing))} can't be restored)")
            return None
        text = (source.text or "").strip()
        if rule.text is not None and not rule.text.fullmatch(text):
            self.dropped.add(f"{where} (its text can't be restored)")
            return None
        if rule.text is not None:
            copy.text = self.renew(text)
        for name in lost:
            self.dropped.add(f"{where} {shown_name(name)}=")
        self.children(source, copy, rule.children, where)
        return copy

    def children(
        self,
        source: ET.Element,
        copy: ET.Element,
        rules: Mapping[str, Rule],
        where: str,
        *,
        handled: frozenset[str] = frozenset(),
    ) -> None:
        """Append the allowed children of ``source`` to ``copy``, in their order.

        Those in ``handled`` are the caller's own business.
        """
        counts: dict[str, int] = {}
        for child in source:
            if child.tag in handled:
                continue
            inner = f"{where}/{shown_name(child.tag)}" if where else shown_name(child.tag)
            rule = rules.get(child.tag)
            counts[child.tag] = counts.get(child.tag, 0) + 1
            if rule is None:
                self.leave_out(child, inner)
                continue
            if counts[child.tag] > rule.most:
                self.dropped.add(f"{inner} (one more than there may be)")
                continue
            if (made := self.element(child, rule, inner)) is not None:
                copy.append(made)

    def leave_out(self, source: ET.Element, where: str) -> None:
        """Say that ``source`` has no place in the copy, unless it means nothing."""
        if not _means_nothing(source):
            reason = _REASONS.get(where)
            self.dropped.add(f"{where} ({reason})" if reason else where)

    def prose(self, text: str, where: str, *, max_chars: int) -> str:
        """Text for people: the host's absolute paths are left out of it, URLs stay."""
        cut = text[:max_chars]
        if len(text) > max_chars:
            self.changed.add(f"{where}: cut after {max_chars} characters")
        clean = _PATH_OR_URL.sub(lambda match: match["url"] or "[path]", cut)
        if clean != cut:
            self.changed.add(f"{where}: [path] stands where it named a path of the original host")
        return self.renew(clean)


def _means_nothing(element: ET.Element) -> bool:
    """Aliases are libvirt's to give, and an empty ``<backingStore/>`` says "no backing file"."""
    if element.tag == "alias":
        return True
    return element.tag == "backingStore" and not element.attrib and not len(element)


def shown_name(tag: str) -> str:
    """``{uri}commandline`` -> ``qemu:commandline``."""
    if not tag.startswith("{"):
        return tag[:64]
    uri, _, local = tag[1:].partition("}")
    return f"{_NAMESPACES.get(uri, 'foreign')}:{local[:64]}"
