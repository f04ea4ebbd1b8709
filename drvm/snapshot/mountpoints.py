"""Which of a guest's file systems are frozen, where the policy does not mean all of them.

What there is, is asked of the guest's agent: hostile input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drvm.core.errors import AgentError
from drvm.host.model import Domain

_MAX_FILE_SYSTEMS = 1000
_MAX_CHARS = 1024


@dataclass(frozen=True, slots=True)
class MountPoints:
    """``include``: only these; empty for all. ``exclude``: but not these. As the guest writes
    them (``/srv/db``, ``D:\\``), exactly."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything else is meant than all file systems."""
        return bool(self.include or self.exclude)


ALL = MountPoints()


@dataclass(frozen=True, slots=True)
class Chosen:
    mount_points: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose(wanted: MountPoints, there: frozenset[str]) -> Chosen:
    """Of those that are ``there``; a warning for each that the policy names and is not."""
    missing = [point for point in (*wanted.include, *wanted.exclude) if point not in there]
    left = (frozenset(wanted.include) or there) & there - frozenset(wanted.exclude)
    warnings = tuple(f"the guest has no file system at {point}" for point in missing)
    return Chosen(tuple(sorted(left)), warnings)


def mounted(domain: Domain, timeout_s: int) -> frozenset[str]:
    """Where the guest has file systems that can be frozen. Raises ``AgentError``."""
    told = domain.agent_command("guest-get-fsinfo", timeout_s=timeout_s)
    if not isinstance(told, list) or len(told) > _MAX_FILE_SYSTEMS:
        raise AgentError("the agent's list of file systems is not understood")
    return frozenset(map(_mount_point, told))


def _mount_point(file_system: Any) -> str:
    point = file_system.get("mountpoint") if isinstance(file_system, Mapping) else None
    if not isinstance(point, str) or not point or len(point) > _MAX_CHARS:
        raise AgentError("the agent's list of file systems is not understood")
    return point
