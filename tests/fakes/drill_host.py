"""A KVM host in memory that starts machines, for drills. ``fail`` names the calls that raise, and
what they raise; ``agent``, ``agent_answers`` and ``answer`` are what the guest does when it is
asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from defusedxml.ElementTree import fromstring

from drvm.core.errors import AgentError, HostUnreachable, UnknownVm
from drvm.host.model import DomainState, GuestCommandResult, HostCapabilities
from drvm.host.places import StatePlaces

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@dataclass
class DrillHost:
    uri: str = "qemu:///system"
    fail: dict[str, BaseException] = field(default_factory=dict)
    once: dict[str, BaseException] = field(default_factory=dict)
    """As ``fail``, for the next such call alone."""
    agent: Callable[[], object] = lambda: None
    answer: Callable[[Any], GuestCommandResult] = lambda _: GuestCommandResult(0, b"42\n", b"")
    agent_answers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    firmwares: frozenset[str] = frozenset({"bios"})
    machines: dict[str, str] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    places: StatePlaces | None = None
    remote: bool = False
    pools_there: list[Any] = field(default_factory=list)
    memory_bytes: int | None = None
    stopped: set[str] = field(default_factory=set)
    """The machines that QEMU has stopped for their first disk."""
    away: int = 0
    """So many calls don't reach libvirtd any more."""
    asked: str = ""
    """The machine whose agent was asked last."""

    def did(self, call: str) -> None:
        self.calls.append(call)
        if call in self.once:
            raise self.once.pop(call)
        if call in self.fail:
            raise self.fail[call]

    @property
    def storage(self) -> Any:
        return SimpleNamespace(names=self.names)

    def names(self, pool: str) -> frozenset[str]:
        self.did(f"look at pool {pool}")
        return frozenset()

    def available_memory_bytes(self) -> int | None:
        return self.memory_bytes

    def reach(self) -> None:
        if self.away:
            self.away -= 1
            raise HostUnreachable("no connection to libvirt")

    def hostname(self) -> str:
        return "kvm1"

    def domains(self) -> list[DrilledDomain]:
        return [DrilledDomain(self, name) for name in self.machines]

    def find_domain(self, name: str) -> DrilledDomain | None:
        self.reach()
        return DrilledDomain(self, name) if name in self.machines else None

    def start_transient(self, domain_xml: str) -> DrilledDomain:
        self.did("start")
        name = fromstring(domain_xml).findtext("name")
        self.machines[name] = domain_xml
        return DrilledDomain(self, name)

    def capabilities(self) -> HostCapabilities:
        return HostCapabilities("x86_64", frozenset(), frozenset({"qemu"}), self.firmwares)

    def firmware_file(self, domain_xml: str) -> None:
        return None

    def pools(self) -> list[Any]:
        return self.pools_there

    def refusal(self, domain_xml: str) -> None:
        return None

    def cpu_obstacle(self, domain_xml: str) -> None:
        return None

    def bridges(self) -> None:
        return None

    def network_names(self) -> list[str]:
        self.reach()
        return sorted(self.networks)

    def create_network(self, network_xml: str) -> None:
        self.did("create-network")
        self.networks.add(fromstring(network_xml).findtext("name"))

    def destroy_network(self, name: str) -> None:
        self.did("destroy-network")
        self.networks.discard(name)


@dataclass
class DrilledDomain:
    host: DrillHost
    name: str

    @property
    def uuid(self) -> str:
        return str(fromstring(self.xml()).findtext("uuid"))

    def xml(self, **_: bool) -> str:
        return self.host.machines[self.name]

    def state(self) -> DomainState:
        self.host.reach()
        if self.name not in self.host.machines:
            raise UnknownVm(f"no domain {self.name}")
        return DomainState.RUNNING

    def agent_ping(self, **_: int) -> None:
        try:
            self.state()
        except HostUnreachable as problem:
            raise AgentError(problem.message) from None
        self.host.asked = self.name
        self.host.did("ping")
        self.host.agent()

    def agent_command(self, command: str, arguments: Any = None, **_: float) -> Any:
        self.host.did(command)
        if command not in self.host.agent_answers:
            raise AgentError(f"the agent does not know {command}")
        return self.host.agent_answers[command](**(arguments or {}))

    def guest_run(self, argv: Sequence[str], **_: float) -> GuestCommandResult:
        self.host.did("run")
        return self.host.answer(argv)

    def stopped_by_disks(self) -> frozenset[str]:
        self.state()
        return frozenset({"vda"} if self.name in self.host.stopped else ())

    def screenshot(self) -> bytes:
        self.host.did("screenshot")
        return PNG

    def destroy(self) -> None:
        self.host.did("destroy")
        self.host.machines.pop(self.name, None)
