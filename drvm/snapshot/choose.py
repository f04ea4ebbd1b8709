"""Which engine captures a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from drvm.core.errors import CaptureError
from drvm.host.model import Domain, DomainState
from drvm.snapshot import memory
from drvm.snapshot.capture import CaptureRequest, Engine, EngineWish
from drvm.snapshot.external import ExternalEngine
from drvm.snapshot.offline import OfflineEngine
from drvm.snapshot.parts import Parts
from drvm.snapshot.pull import PullEngine

EngineName = Literal["external", "pull", "offline"]

_ENGINES: Mapping[EngineName, Callable[[Parts], Engine]] = {
    "external": ExternalEngine,
    "pull": PullEngine,
    "offline": OfflineEngine,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason``: for people."""

    engine: EngineName
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    engine: Engine
    reason: str


def decide(domain: Domain, wish: EngineWish = "auto") -> Decision:
    """By what the machine does now, and by what its policy asks for. Raises ``CaptureError`` for
    one that neither runs nor is off (it is being migrated, or is shutting down).

    ``auto`` is external, but for a machine with somebody else's external snapshots: their files
    are part of its chain, and drvm changes none that others rely on.
    """
    state = domain.state()
    if state is DomainState.SHUTOFF:
        return Decision("offline", "it is off")
    if state not in (DomainState.RUNNING, DomainState.PAUSED):
        raise CaptureError(f"{domain.name} neither runs nor is off", hint="try again in a moment")
    if wish != "auto":
        return Decision(wish, "its policy says so")
    snapshots = domain.external_snapshot_names()
    if snapshots:
        return Decision("pull", f"its external snapshot {snapshots[0]} must stay as it is")
    return Decision("external", f"it is {state.value}")


def choose(parts: Parts, vm: str, wish: EngineWish = "auto") -> Choice:
    """See ``decide``. Raises ``UnknownVm`` too."""
    decision = decide(parts.host.domain(vm), wish)
    return Choice(_ENGINES[decision.engine](parts), decision.reason)


def choose_for(parts: Parts, request: CaptureRequest) -> Choice:
    """What ``choose`` says. Raises ``CaptureError`` too where the request wants the memory, and
    that engine has none or the machine's can't be captured."""
    choice = choose(parts, request.vm, request.engine)
    if request.memory:
        if choice.engine.name != ExternalEngine.name:
            raise CaptureError(
                f"the engine {choice.engine.name} captures no memory ({choice.reason})",
                hint="only that of a machine that runs can be, by the external engine",
            )
        memory.refuse(parts.host.domain(request.vm), request)
    return choice
