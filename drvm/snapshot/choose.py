"""Which engine captures a machine."""

from __future__ import annotations

from dataclasses import dataclass

from drvm.core.errors import CaptureError
from drvm.host.model import DomainState
from drvm.snapshot.capture import Engine
from drvm.snapshot.external import ExternalEngine
from drvm.snapshot.offline import OfflineEngine
from drvm.snapshot.parts import Parts


@dataclass(frozen=True, slots=True)
class Choice:
    engine: Engine
    reason: str


def choose(parts: Parts, vm: str) -> Choice:
    """By what the machine does now. Raises ``UnknownVm``, and ``CaptureError`` for a machine
    that neither runs nor is off (it is being migrated, or is shutting down)."""
    domain = parts.host.domain(vm)
    state = domain.state()
    if state in (DomainState.RUNNING, DomainState.PAUSED):
        return Choice(ExternalEngine(parts), f"it is {state.value}")
    if state is DomainState.SHUTOFF:
        return Choice(OfflineEngine(parts), "it is off")
    raise CaptureError(f"{domain.name} neither runs nor is off", hint="try again in a moment")
