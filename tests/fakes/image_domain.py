"""A machine whose images are real and whose QEMU is qemu-img: no guest, so histories are cheap."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.errors import AgentError
from drvm.core.process import SystemProcesses
from drvm.host.model import BlockJob
from tests.fakes.chain_host import FakeDomain


def qemu_img(*words: object) -> None:
    SystemProcesses().run(["qemu-img", *map(str, words)], timeout_s=60)


@dataclass
class ImageDomain(FakeDomain):
    """Snapshots, commits and pivots change the images as QEMU would."""

    snapshots: list[str] = field(default_factory=list)

    def io(self, target: str, *commands: str) -> None:
        top = self.chains[target][0]
        image_format = "raw" if top.endswith(".raw") else "qcow2"
        argv = ["qemu-io", "-d", "unmap", "-f", image_format]
        argv += [word for command in commands for word in ("-c", command)]
        SystemProcesses().run([*argv, top], timeout_s=60)

    def content(self, target: str, scratch: Path) -> bytes:
        """All that a guest would read, by way of qemu-img."""
        top, raw = self.chains[target][0], scratch / "content"
        image_format = "raw" if top.endswith(".raw") else "qcow2"
        qemu_img("convert", "-f", image_format, "-O", "raw", top, raw)
        return raw.read_bytes()

    def create_disk_snapshot(
        self, snapshot_xml: str, *, quiesce: bool, memory: bool = False
    ) -> None:
        assert not (quiesce or memory)
        for target in self.chains:
            words = snapshot_xml.split(f'name="{target}"', 1)[1]
            self.chains[target].insert(0, words.split('file="', 1)[1].split('"', 1)[0])

    def commit_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        self.jobs[target] = BlockJob("active-commit", 1, 1, ready=True)

    def block_job_pivot(self, target: str) -> None:
        top, base = self.chains[target][:2]
        qemu_img("commit", "-q", "-f", "qcow2", "-b", base, top)
        super().block_job_pivot(target)

    def commit_below_start(
        self, target: str, *, top: Path, base: Path, bandwidth_mib_s: int = 0
    ) -> None:
        upper, middle, below = self.chains[target][:3]
        assert (middle, below) == (str(top), str(base))
        kind = "raw" if below.endswith(".raw") else "qcow2"
        qemu_img("commit", "-q", "-f", "qcow2", "-b", below, middle)
        qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", below, "-F", kind, upper)
        del self.chains[target][1]

    # -- what the external engine asks for besides --------------------------------------------
    def domain_job(self) -> str | None:
        return None

    def snapshot_names(self) -> list[str]:
        return self.snapshots

    def external_snapshot_names(self) -> list[str]:
        return []

    def checkpoint_names(self) -> list[str]:
        return []

    def agent_ping(self, *, timeout_s: int = 5) -> None:
        raise AgentError("there is no agent")
