"""What the guest's agent tells of the guest: for people to read, never to decide by."""

from __future__ import annotations

from drvm.core.errors import AgentError
from drvm.host.model import Domain

_MAX_CHARS = 200
_OS_FIELDS = {"pretty-name": "os", "id": "os_id", "version-id": "os_version", "machine": "machine"}


def ask(domain: Domain) -> dict[str, str]:
    """Operating system and host name, as far as the agent says; empty where it does not."""
    told: dict[str, str] = {}
    try:
        system = domain.agent_command("guest-get-osinfo")
        if isinstance(system, dict):
            for field, name in _OS_FIELDS.items():
                _keep(told, name, system.get(field))
        host = domain.agent_command("guest-get-host-name")
        if isinstance(host, dict):
            _keep(told, "hostname", host.get("host-name"))
    except AgentError:
        return told
    return told


def _keep(told: dict[str, str], name: str, value: object) -> None:
    if isinstance(value, str) and value.isprintable() and value:
        told[name] = value[:_MAX_CHARS]
