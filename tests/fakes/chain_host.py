"""A KVM host in memory: chains of images per disk, snapshot, commit and pivot; no guest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drvm.core.errors import AgentError, HostError, UnknownVm
from drvm.host.model import BlockJob, DomainState
from drvm.snapshot import domainxml

_READY = BlockJob("active-commit", 1, 1, ready=True)


@dataclass
class FakeDomain:
    """``chains``: target -> paths, the one in use first; live and stored alike. ``jobs``:
    target -> active commit. ``bandwidths``: as they were asked for. The agent is absent unless
    ``frozen`` says something."""

    name: str
    uuid: str
    chains: dict[str, list[str]]
    running: bool = True
    jobs: dict[str, BlockJob] = field(default_factory=dict)
    frozen: bool | None = None
    commit_progress: BlockJob = _READY
    bandwidths: list[int] = field(default_factory=list)
    stopped: frozenset[str] = frozenset()
    saved: bool = False

    def state(self) -> DomainState:
        return DomainState.RUNNING if self.running else DomainState.SHUTOFF

    def xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        disks = ""
        for target, chain in self.chains.items():
            below = "".join(
                f"<backingStore type='file'><format type='{_format(path)}'/><source file='{path}'/>"
                for path in chain[1:]
            )
            job = (
                ""
                if inactive or target not in self.jobs
                else (
                    f"<mirror type='file' job='active-commit'><source file='{chain[1]}'/></mirror>"
                )
            )
            disks += (
                f"<disk type='file'><driver type='{_format(chain[0])}'/>"
                f"<source file='{chain[0]}'/>{below}"
                f"{'</backingStore>' * len(chain[1:])}{job}<target dev='{target}'/></disk>"
            )
        names = f"<name>{self.name}</name><uuid>{self.uuid}</uuid>"
        return f"<domain>{names}<devices>{disks}</devices></domain>"

    def backup_xml(self) -> str | None:
        return None

    def has_managed_save(self) -> bool:
        return self.saved

    def commit_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        self.jobs[target] = self.commit_progress
        self.bandwidths.append(bandwidth_mib_s)

    def set_commit_bandwidth(self, target: str, bandwidth_mib_s: int) -> None:
        self.bandwidths.append(bandwidth_mib_s)

    def stopped_by_disks(self) -> frozenset[str]:
        return self.stopped

    def resume(self) -> None:
        self.stopped = frozenset()

    def block_job(self, target: str) -> BlockJob | None:
        return self.jobs.get(target)

    def block_job_pivot(self, target: str) -> None:
        del self.jobs[target], self.chains[target][0]

    def filesystems_frozen(self, *, timeout_s: int = 5) -> bool | None:
        return self.frozen

    def thaw(self) -> None:
        if self.frozen is None:
            raise AgentError("there is no agent")
        self.frozen = False


def _format(path: str) -> str:
    return "qcow2" if path.endswith((".qcow2", ".overlay")) else "raw"


class FakeHost:
    """``fail_next``: how many of the next look-ups fail with ``failure``."""

    uri = "qemu:///fake"
    places = None

    def __init__(self, *domains: FakeDomain) -> None:
        self.there = list(domains)
        self.fail_next = 0
        self.failure: HostError = HostError("no")

    def define(self, domain_xml: str) -> Any:
        """Live too: a fake domain has only one definition."""
        machine = domainxml.read(domain_xml)
        domain = self.domain(machine.uuid)
        domain.chains = {
            disk.target: [str(layer.path) for layer in disk.layers] for disk in machine.disks
        }
        return domain

    def domains(self) -> list[Any]:
        return list(self.there)

    def find_domain(self, name_or_uuid: str) -> Any:
        if self.fail_next:
            self.fail_next -= 1
            raise self.failure
        found = (d for d in self.there if name_or_uuid in (d.name, d.uuid))
        return next(found, None)

    def domain(self, name_or_uuid: str) -> Any:
        found = self.find_domain(name_or_uuid)
        if found is None:
            raise UnknownVm(f"no {name_or_uuid}")
        return found
