"""A KVM host in memory that machines are restored to: one directory as its pool, definitions as
they come. It takes whatever it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defusedxml.ElementTree import fromstring

from drvm.host.model import DomainState, HostCapabilities, Pool
from drvm.host.places import StatePlaces

_ROOM_BYTES = 1 << 60


@dataclass
class TargetHost:
    """``root``: everything of the host lies below it; its pool ``default`` is ``root/pool``.
    ``volumes``: what its storage is, where images are volumes. ``brought_back``: the size of the
    memory that a machine went on from."""

    root: Path
    uri: str = "qemu:///system"
    remote: bool = False
    machines: dict[str, str] = field(default_factory=dict)
    volumes: Any = None
    brought_back: int | None = None

    def __post_init__(self) -> None:
        self.pool_path = self.root / "pool"
        places = StatePlaces(self.root / "nvram", self.root / "tpm", self.root / "machines")
        for path in (self.pool_path, places.nvram, places.tpm):
            path.mkdir(parents=True, exist_ok=True)
        self.places = None if self.remote else places

    def hostname(self) -> str:
        return "kvm1"

    def domains(self) -> list[TargetDomain]:
        return [TargetDomain(self, name) for name in self.machines]

    def find_domain(self, name_or_uuid: str) -> TargetDomain | None:
        found = (d for d in self.domains() if name_or_uuid in (d.name, d.uuid))
        return next(found, None)

    def define(self, domain_xml: str) -> TargetDomain:
        name = fromstring(domain_xml).findtext("name")
        self.machines[name] = domain_xml
        return TargetDomain(self, name)

    def capabilities(self) -> HostCapabilities:
        kinds = frozenset({"kvm", "qemu"})
        return HostCapabilities("x86_64", frozenset(), kinds, frozenset({"bios", "efi"}))

    def pools(self) -> list[Pool]:
        return [Pool("default", "dir", True, str(self.pool_path), _ROOM_BYTES)]

    def refresh_pool(self, name: str) -> None:
        return None

    def network_names(self) -> list[str]:
        return ["default", "x"]

    def bridges(self) -> None:
        return None

    def firmware_file(self, domain_xml: str) -> None:
        return None

    def cpu_obstacle(self, domain_xml: str) -> None:
        return None

    def refusal(self, domain_xml: str) -> None:
        return None

    def restore_running(self, memory: Path, domain_xml: str) -> None:
        assert domain_xml in self.machines.values()
        self.brought_back = memory.stat().st_size

    @property
    def storage(self) -> Any:
        assert self.volumes is not None, "images of this host are files"
        return self.volumes


@dataclass
class TargetDomain:
    host: TargetHost
    name: str

    @property
    def uuid(self) -> str:
        return str(fromstring(self.xml()).findtext("uuid"))

    def xml(self, **_: bool) -> str:
        return self.host.machines[self.name]

    def state(self) -> DomainState:
        return DomainState.SHUTOFF

    def has_managed_save(self) -> bool:
        return False

    def start(self) -> None:
        return None

    def undefine(self) -> None:
        del self.host.machines[self.name]
