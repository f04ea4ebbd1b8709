"""A real machine without an operating system: it starts in half a second, and what its disks are
given comes through QEMU's monitor. For chains, jobs and crashes, where no file system matters."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.process import Processes
from drvm.lab import guest as lab
from tests.guests import Guest, unique_name

MIB = 1 << 20


@dataclass(frozen=True)
class Bare(Guest):
    """``vda`` is raw, ``vdb`` qcow2, and others are block devices with a raw image."""

    def io(self, target: str, *commands: str) -> None:
        """``qemu-io`` commands as if the guest had done it."""
        for command in commands:
            device = f"/machine/peripheral/{self._alias(target)}/virtio-backend"
            said = self._monitor(f'qemu-io -d {device} "{command}"')
            assert "rror" not in said and "Try" not in said, said

    def image_of(self, target: str) -> str:
        """What the running machine writes to."""
        block_list = self.virsh("domblklist")
        return dict(line.split(maxsplit=1) for line in block_list.strip().splitlines())[
            target
        ].strip()

    def kill_qemu(self) -> None:
        pid = int((Path("/run/libvirt/qemu") / f"{self.name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        clock, deadline_s = SystemClock(), SystemClock().monotonic_s() + 30
        while self.virsh("domstate").strip() != "shut off":
            assert clock.monotonic_s() < deadline_s
            clock.sleep(0.05)

    def _alias(self, target: str) -> str:
        (alias,) = re.findall(
            rf"<target dev='{target}' bus='virtio'/>\s*<alias name='([^']+)'/>",
            self.virsh("dumpxml"),
        )
        return str(alias)

    def _monitor(self, command: str) -> str:
        return self.virsh("qemu-monitor-command", "--hmp", command)


@contextlib.contextmanager
def bare_machine(
    processes: Processes,
    suffix: str,
    *,
    devices: Mapping[str, Path] | None = None,
    uri: str = lab.URI,
    size: str = "64M",
) -> Iterator[Bare]:
    """Running, with two disks of ``size``, and ``devices`` (target -> block device)."""
    name = unique_name(suffix)
    with lab.workspace(name) as directory:
        disks = {"vda": directory / "a.raw", "vdb": directory / "b.qcow2", **(devices or {})}
        for target, image_format in (("vda", "raw"), ("vdb", "qcow2")):
            argv = ["qemu-img", "create", "-q", "-f", image_format, str(disks[target]), size]
            processes.run(argv, timeout_s=30)
        definition = directory / "domain.xml"
        definition.write_text(_xml(name, disks))
        machine = Bare(name, directory, disks, processes, uri)
        argv = ["virsh", "-q", "-c", uri, "define", str(definition)]
        processes.run(argv, timeout_s=30)
        try:
            machine.virsh("start")
            yield machine
        finally:
            machine.remove()


def _xml(name: str, disks: Mapping[str, Path]) -> str:
    elements = "".join(
        f"<disk type='{'block' if path.is_block_device() else 'file'}' device='disk'>"
        f"<driver name='qemu' type='{'qcow2' if path.suffix == '.qcow2' else 'raw'}'"
        " discard='unmap'/>"
        f"<source {'dev' if path.is_block_device() else 'file'}='{path}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
        for target, path in disks.items()
    )
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<devices>{elements}</devices></domain>"
    )
