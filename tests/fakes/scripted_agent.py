"""A machine whose guest agent does what a script says, and takes the time that it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drvm.core.errors import AgentError, HostError
from drvm.host.model import DomainState
from tests.fakes.clock import FakeClock

SILENT = AgentError("the agent is silent")


@dataclass
class ScriptedDomain:
    """``frozen`` is the truth about the guest. ``script``: command -> faults of its next calls,
    one after the other: an error to raise, a number of seconds to take first, a value to lie
    with; where it is used up, the agent is honest and quick. ``calls``: what was asked for."""

    clock: FakeClock
    script: dict[str, list[Any]] = field(default_factory=dict)
    frozen: bool = False
    running: bool = True
    name: str = "web"
    uuid: str = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
    calls: list[str] = field(default_factory=list)
    file_systems: list[dict[str, Any]] = field(default_factory=lambda: [{"mountpoint": "/"}])

    def state(self) -> DomainState:
        self._play("state", None)
        return DomainState.RUNNING if self.running else DomainState.SHUTOFF

    def set_agent_timeout(self, timeout_s: int) -> None:
        self._play("timeout", None)

    def agent_ping(self, *, timeout_s: int = 5) -> None:
        self._agent("ping", None)

    def agent_command(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        assert command == "guest-get-fsinfo"
        return self._agent("fsinfo", lambda: self.file_systems)

    def filesystems_frozen(self, *, timeout_s: int = 5) -> bool | None:
        try:
            return self._agent("status", lambda: self.frozen)
        except AgentError:
            return None

    def freeze(self, mount_points: Sequence[str] = ()) -> int:
        def freeze() -> int:
            self.frozen = True
            return len(mount_points) or len(self.file_systems)

        return self._agent("freeze", freeze)

    def thaw(self) -> None:
        def thaw() -> None:
            self.frozen = False

        self._agent("thaw", thaw)

    def _agent(self, command: str, honest: Callable[[], Any] | None) -> Any:
        self.calls.append(command)
        if not self.running:
            raise AgentError("it does not run")
        return self._play(command, honest)

    def _play(self, command: str, honest: Callable[[], Any] | None) -> Any:
        faults = self.script.get(command, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, HostError):
            raise fault
        if isinstance(fault, float):
            self.clock.sleep(fault)
        elif callable(fault):
            return fault(self)
        elif fault is not None:
            return fault
        return None if honest is None else honest()


@dataclass
class SteadyWatch:
    """A watchdog that is always there. ``said``: what it was told."""

    said: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def get_ready(self) -> None:
        if self.failure is not None:
            raise self.failure

    def freezing(self) -> None:
        self.said.append("freezing")

    def thawed(self) -> None:
        self.said.append("thawed")
