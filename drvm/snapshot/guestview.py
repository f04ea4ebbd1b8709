"""What the guest's agent tells of the guest: for people to read, never to decide by (but which
address a drilled guest gets in its isolated network).

Every answer is hostile input (``drvm.host.agent`` bounds its length): only what has the expected
form is kept, of bounded number and size, and under names of ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from drvm.core.clock import Clock
from drvm.core.errors import AgentError
from drvm.core.units import format_bytes
from drvm.host.model import Domain

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_PATIENCE_S = 6.0
_TIMEOUT_S = 3
_MAX_CHARS = 200
_MAX_ENTRIES = 32
_MAX_LOOKED_AT = 256
_MAX_LINE_CHARS = 2000
_MAX_BYTES = 1 << 63
_OS_FIELDS = {"pretty-name": "os", "id": "os_id", "version-id": "os_version", "machine": "machine"}


def ask(domain: Domain, clock: Clock) -> dict[str, str]:
    """Operating system, host name, file systems, addresses, as far as the agent says and is
    quick about it."""
    told: dict[str, str] = {}
    deadline_s = clock.monotonic_s() + _PATIENCE_S
    for command, understand in _QUESTIONS.items():
        if clock.monotonic_s() >= deadline_s:
            break
        try:
            answer = domain.agent_command(command, timeout_s=_TIMEOUT_S)
        except AgentError:
            continue
        told.update({name: text for name, text in understand(answer) if text})
    return told


def _system(answer: Any) -> Iterator[tuple[str, str]]:
    for field, name in _OS_FIELDS.items():
        yield name, _text(answer, field)


def _host_name(answer: Any) -> Iterator[tuple[str, str]]:
    yield "hostname", _text(answer, "host-name")


def _file_systems(answer: Any) -> Iterator[tuple[str, str]]:
    """``/ (ext4, 97.0 MiB of 150.2 MiB)``."""
    found = []
    for entry in _listed(answer):
        mount_point, kind = _text(entry, "mountpoint"), _text(entry, "type")
        if mount_point:
            used, total = _size(entry, "used-bytes"), _size(entry, "total-bytes")
            room = f"{used} of {total}" if used and total else ""
            about = ", ".join(filter(None, (kind, room)))
            found.append(f"{mount_point} ({about})" if about else mount_point)
    yield "file_systems", _joined(found)


def _addresses(answer: Any) -> Iterator[tuple[str, str]]:
    """``eth0 192.0.2.7/24``; neither loopback nor link-local. And the same by MAC, as machines
    find their cards again: ``52:54:00:aa:bb:cc 192.0.2.7/24``."""
    found, cards = [], []
    for entry in _listed(answer):
        card = _text(entry, "name")
        for told in _listed(entry.get("ip-addresses") if isinstance(entry, dict) else None):
            address = _address(_text(told, "ip-address"), told)
            if card and address:
                found.append(f"{card} {address}")
            if address and _MAC.fullmatch(mac := _text(entry, "hardware-address").lower()):
                cards.append(f"{mac} {address}")
    yield "addresses", _joined(found)
    yield "cards", _joined(cards)


_QUESTIONS: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    "guest-get-osinfo": _system,
    "guest-get-host-name": _host_name,
    "guest-get-fsinfo": _file_systems,
    "guest-network-get-interfaces": _addresses,
}


def _listed(answer: Any) -> Iterator[Any]:
    return islice(answer if isinstance(answer, list) else (), _MAX_LOOKED_AT)


def _text(answer: Any, field: str) -> str:
    """Empty for whatever is no text that can be shown."""
    value = answer.get(field) if isinstance(answer, dict) else None
    return value[:_MAX_CHARS] if isinstance(value, str) and value.isprintable() else ""


def _size(answer: Any, field: str) -> str:
    value = answer.get(field) if isinstance(answer, dict) else None
    return format_bytes(value) if type(value) is int and 0 <= value < _MAX_BYTES else ""


def _address(text: str, told: Any) -> str:
    prefix = told.get("prefix") if isinstance(told, dict) else None
    try:
        interface = ipaddress.ip_interface(f"{text}/{prefix}" if type(prefix) is int else text)
    except ValueError:
        return ""
    return "" if interface.is_loopback or interface.is_link_local else str(interface)


def _joined(found: list[str]) -> str:
    more = [f"and {len(found) - _MAX_ENTRIES} more"] if len(found) > _MAX_ENTRIES else []
    return "; ".join(found[:_MAX_ENTRIES] + more)[:_MAX_LINE_CHARS]
