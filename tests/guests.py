"""Real guests for tests, driven by virsh: independent of the code under test."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import libvirt
import libvirt_qemu

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from drvm.core.process import Processes, SystemProcesses
from drvm.lab import guest as lab
from drvm.lab import services
from drvm.lab.disk import READY_LINE
from tests import warm

BOOT_LIMIT_S = 180.0
"""Emulated, on a busy machine of two cores; usually 7 s."""

_PREFIX = "drvm-test"
_AGENT_LIMIT_S = 10
_APART = "=====drvm====="
_connections: dict[tuple[int, str], libvirt.virConnect] = {}
libvirt.registerErrorHandler(lambda _context, _error: None, None)
_numbers = itertools.count(1)
_clock = SystemClock()


@dataclass(frozen=True)
class Guest:
    """A defined domain. ``disks``: target -> image (vda qcow2, vdb raw)."""

    name: str
    directory: Path
    disks: dict[str, Path]
    processes: Processes
    uri: str = lab.URI

    @property
    def serial_log(self) -> str:
        """What the guest has written to its serial console so far, over all its boots."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "serial.log").read_text(errors="replace")
        return ""

    def virsh(self, command: str, *arguments: str, timeout_s: float = 60.0) -> str:
        """``virsh COMMAND NAME ARGUMENTS``. Raises ``ProcessFailed``."""
        argv = ["virsh", "-q", "-c", self.uri, command, self.name, *arguments]
        return self.processes.run(argv, timeout_s=timeout_s).stdout.decode()

    def virsh_all(self, *commands: str) -> list[str]:
        """What each of these says of the guest (``dumpxml``, ``domblklist --inactive``), by one
        process."""
        asked = [
            f"{verb} {self.name} {rest}" for verb, _, rest in (c.partition(" ") for c in commands)
        ]
        argv = ["virsh", "-q", "-c", self.uri, f"; echo {_APART}; ".join(asked)]
        told = self.processes.run(argv, timeout_s=60).stdout.decode().split(_APART)
        assert len(told) == len(commands), told
        return told

    def agent(self, command: str, **arguments: Any) -> Any:
        """Raises ``ProcessFailed``."""
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(ask_agent(self.uri, self.name, request))["return"]

    def run(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a shell command in the guest; any exit code but 0 is an ``AssertionError``."""
        arguments = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        pid = self.agent("guest-exec", **arguments)["pid"]
        deadline = _clock.monotonic_s() + timeout_s
        while not (status := self.agent("guest-exec-status", pid=pid))["exited"]:
            assert _clock.monotonic_s() < deadline, f"{command!r} ran for over {timeout_s} s"
            _clock.sleep(0.05)
        out, error = (
            base64.b64decode(status.get(key, "")).decode(errors="replace")
            for key in ("out-data", "err-data")
        )
        assert status.get("exitcode") == 0, f"{command!r} failed in {self.name}: {status} {error}"
        return out

    def start(self) -> None:
        """Start and wait for the agent."""
        self.virsh("start")
        self.wait_for_agent()

    def shutdown(self, timeout_s: float = 60.0) -> None:
        """Ask the guest to power off and wait until it has."""
        self.virsh("shutdown", "--mode", "agent")
        deadline = _clock.monotonic_s() + timeout_s
        while self.virsh("domstate").strip() != "shut off":
            assert _clock.monotonic_s() < deadline, f"{self.name} did not shut down"
            _clock.sleep(0.1)

    def wait_for_agent(self, limit_s: float = BOOT_LIMIT_S) -> None:
        deadline = _clock.monotonic_s() + limit_s
        while True:
            try:
                self.agent("guest-ping")
                return
            except ProcessFailed as error:
                tail = self.serial_log[-1500:]
                assert _clock.monotonic_s() < deadline, f"{self.name}: {error}\n{tail}"
            _clock.sleep(0.1)

    def wait_until_thawed(self, limit_s: float = 60.0) -> None:
        """After a kill: the thaw watchdog, or libvirtd at the end of its snapshot, does it."""
        deadline = _clock.monotonic_s() + limit_s
        status = ""
        while status != "thawed":
            assert _clock.monotonic_s() < deadline, f"{self.name} is still {status or 'silent'}"
            with contextlib.suppress(ProcessFailed):  # it is paused with its memory
                status = str(self.agent("guest-fsfreeze-status"))
            _clock.sleep(0.05)

    def remove(self) -> None:
        """Gone whatever state it is in; the disks stay."""
        with contextlib.suppress(ProcessFailed):
            self.virsh("destroy")
        with contextlib.suppress(ProcessFailed):
            self.virsh("undefine", "--nvram", "--snapshots-metadata", "--checkpoints-metadata")


def ask_agent(uri: str, name: str, request: str) -> str:
    """As virsh's ``qemu-agent-command``, without a process and a connection for each: guests are
    asked thousands of times. A connection that has ended (tests end libvirtd) is made anew."""
    key = (os.getpid(), uri)  # never one of the process that we were forked from
    try:
        try:
            domain = _connections[key].lookupByName(name)
        except (KeyError, libvirt.libvirtError):
            _connections[key] = libvirt.open(uri)
            domain = _connections[key].lookupByName(name)
        return str(libvirt_qemu.qemuAgentCommand(domain, request, _AGENT_LIMIT_S, 0))
    except libvirt.libvirtError as error:
        raise ProcessFailed(f"the agent of {name}: {error}") from None


def remove_leftovers(processes: Processes) -> None:
    """Guests, networks and directories of test runs that were killed."""

    def is_left(name: str) -> bool:
        owner = re.match(rf"{_PREFIX}-(\d+)-", name)
        return owner is not None and not Path("/proc", owner[1]).exists()

    def names(*command: str) -> list[str]:
        argv = ["virsh", "-q", "-c", lab.URI, *command, "--name"]
        return list(filter(is_left, processes.run(argv, timeout_s=60).stdout.decode().split()))

    for name in names("list", "--all"):
        Guest(name, Path(), {}, processes).remove()
    for name in names("net-list"):
        processes.run(["virsh", "-q", "-c", lab.URI, "net-destroy", name], timeout_s=60)
    for directory in lab.IMAGES.glob(f"{_PREFIX}-*"):
        if is_left(directory.name):
            shutil.rmtree(directory)


def all_qcow2(xml: str) -> str:
    """For ``edit``: the data disk as qcow2 too. ``Guest.disks`` is put right by ``with_qcow2``."""
    (raw,) = re.findall(r"[\"'](/[^\"']*/data\.raw)[\"']", xml)
    qcow2 = raw.removesuffix("raw") + "qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2]
    SystemProcesses().run(argv, timeout_s=60)
    return xml.replace(raw, qcow2).replace("type='raw'", "type='qcow2'")


def with_qcow2(guest: Guest) -> Guest:
    """A guest that was made with ``all_qcow2``."""
    guest.disks["vdb"] = guest.directory / "data.qcow2"
    return guest


@dataclass
class Sleeper:
    """The usual guest as it was saved after its first boot; until then nothing. ``directory`` is
    where it is kept."""

    directory: Path
    saved: warm.Saved | None = None


class MakeGuest(Protocol):
    def __call__(
        self,
        suffix: str,
        *,
        network: str | None = None,
        memory_mib: int = 256,
        edit: Callable[[str], str] | None = None,
        agent: bool = True,
        uefi: bool = False,
    ) -> Guest:
        """Define and start a guest and wait until its agent answers; without ``agent`` until its
        console says that it is up. ``edit`` may change the XML before it is defined. ``uefi``:
        with NVRAM and an emulated TPM."""
        ...


def unique_name(suffix: str) -> str:
    """For domains, networks and pools of tests: no two runs share one."""
    return f"{_PREFIX}-{os.getpid()}-{next(_numbers)}-{suffix}"


@contextlib.contextmanager
def guests(
    template: lab.GuestTemplate,
    virt_type: lab.VirtType,
    processes: Processes,
    sleeper: Sleeper | None = None,
) -> Iterator[MakeGuest]:
    """A maker of guests, which are all removed at the end with their directories. With a
    ``sleeper`` the usual guest boots once only, and others wake from its memory."""
    with contextlib.ExitStack() as cleanup:

        def make(
            suffix: str,
            *,
            network: str | None = None,
            memory_mib: int = 256,
            edit: Callable[[str], str] | None = None,
            agent: bool = True,
            uefi: bool = False,
        ) -> Guest:
            name = unique_name(suffix)
            directory = cleanup.enter_context(lab.workspace(name))
            disks = lab.create_disks(template, directory, processes)
            guest = Guest(name, directory, disks, processes)
            xml = lab.domain_xml(
                name,
                directory,
                virt_type=virt_type,
                network=network,
                memory_mib=memory_mib,
                uefi=uefi,
            )
            cleanup.callback(guest.remove)
            usual = network is None and memory_mib == 256 and edit is None and agent and not uefi
            if usual and sleeper is not None and sleeper.saved is not None:
                warm.wake(sleeper.saved, name, directory, xml, processes)
                guest.wait_for_agent()
                return guest
            definition = directory / "domain.xml"
            definition.write_text(edit(xml) if edit is not None else xml)
            argv = ["virsh", "-q", "-c", lab.URI, "define", str(definition)]
            processes.run(argv, timeout_s=60)
            guest.virsh("start")
            if agent:
                guest.wait_for_agent()
            else:
                log = directory / "serial.log"
                assert lab.wait_for_text(log, READY_LINE, BOOT_LIMIT_S, _clock), guest.serial_log
            if usual and sleeper is not None:
                sleeper.saved = warm.save(name, directory, sleeper.directory, processes)
                guest.wait_for_agent()
            return guest

        yield make


@contextlib.contextmanager
def command_guests(processes: Processes) -> Iterator[MakeGuest]:
    """``guests`` for a command of its own, which starts a libvirtd where none answers."""
    with services.libvirtd(processes, _clock):
        template = lab.build_template(lab.default_cache(), processes)
        virt_type = lab.probe_virt_type(template, lab.default_cache(), processes, _clock)
        with guests(template, virt_type, processes) as make:
            yield make


if __name__ == "__main__":
    if sys.argv[1] == "build":
        lab.build_template(lab.default_cache(), SystemProcesses())
    else:
        remove_leftovers(SystemProcesses())
