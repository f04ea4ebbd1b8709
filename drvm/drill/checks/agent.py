"""The guest's agent answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drvm.core.errors import AgentError
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """Implements ``Check``. The agent is started by the guest's own init: its answer means that
    the operating system runs."""

    timeout_s: ClassVar[float] = 30.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @property
    def name(self) -> str:
        return "agent"

    @property
    def proves(self) -> str:
        return "the guest's operating system started: its agent answered"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        try:
            guest.domain.agent_ping()
        except AgentError as problem:
            return Attempt(False, False, problem.message)
        return Attempt(True, True, "the agent answered")
