"""What libvirt itself says to rebuilt definitions."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import HostError, HostUnreachable
from drvm.core.process import Processes
from drvm.host.libvirt_host import LibvirtHost
from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity, VirtType, rebuild
from drvm.restore.machine.disks import DiskImage
from drvm.restore.preflight import needs, problems
from drvm.restore.target import gather
from tests.guests import unique_name
from tests.unit.restore.hostile import DISARMED
from tests.unit.restore.machines import MARKER, NAMES, clone_of, machine

pytestmark = pytest.mark.guest


@dataclasses.dataclass(frozen=True)
class Virsh:
    processes: Processes
    uri: str
    directory: Path

    def __call__(self, command: str, *arguments: str) -> str:
        argv = ["virsh", "-q", "-c", self.uri, command, *arguments]
        return self.processes.run(argv, timeout_s=60).stdout.decode()

    def file(self, xml: str) -> str:
        path = self.directory / "domain.xml"
        path.write_text(xml)
        return str(path)


@pytest.fixture
def virsh(processes: Processes, libvirt_uri: str, tmp_path: Path) -> Virsh:
    return Virsh(processes, libvirt_uri, tmp_path)


@pytest.fixture
def identity(virsh: Virsh) -> Iterator[Identity]:
    """A name that nobody has; whatever was defined under it goes with the test."""
    name = unique_name("definition")
    yield Identity(name, str(uuid.uuid4()), keep_macs=False)
    if name in virsh("list", "--all", "--name").split():
        virsh("undefine", name, "--nvram")


Rebuild = Callable[..., Definition]


@pytest.fixture
def rebuilt(virsh: Virsh, identity: Identity) -> Rebuild:
    def make(name: str, virt_type: VirtType, **changes: Any) -> Definition:
        if name == "uefi_q35" and "<value>efi</value>" not in virsh("domcapabilities"):
            pytest.skip("no UEFI firmware for guests on this host (Debian: ovmf)")
        if f"<domain type='{virt_type}'" not in virsh("capabilities"):
            pytest.skip(f"this host has no {virt_type}")
        spec = dataclasses.replace(
            clone_of(name), identity=identity, virt_type=virt_type, **changes
        )
        return rebuild(machine(name), spec)

    return make


@pytest.mark.parametrize("isolate_to", [None, "drill-net"])
@pytest.mark.parametrize("virt_type", ["kvm", "qemu"])
@pytest.mark.parametrize("name", NAMES)
def test_libvirt_accepts_it_against_its_schema(
    virsh: Virsh,
    rebuilt: Rebuild,
    identity: Identity,
    name: str,
    virt_type: VirtType,
    isolate_to: str | None,
) -> None:
    made = rebuilt(name, virt_type, isolate_to=isolate_to)
    with contextlib.closing(LibvirtHost(virsh.uri)) as host:
        assert host.refusal(made.xml) is None
    virsh("define", "--validate", virsh.file(made.xml))
    assert virsh("domuuid", identity.name).strip() == identity.uuid


@pytest.mark.parametrize("name", NAMES)
def test_qemu_would_be_started_without_any_path_of_the_original(
    virsh: Virsh, rebuilt: Rebuild, name: str
) -> None:
    made = rebuilt(name, "qemu", isolate_to="drill-net")
    command_line = virsh("domxml-to-native", "qemu-argv", virsh.file(made.xml))
    assert MARKER not in command_line
    assert "/restored/vda.qcow2" in command_line


def test_a_machine_without_secure_boot_is_not_given_it(virsh: Virsh, rebuilt: Rebuild) -> None:
    made = rebuilt("uefi_q35", "qemu", isolate_to="drill-net")
    command_line = virsh("domxml-to-native", "qemu-argv", virsh.file(made.xml))
    assert "property=secure,value=on" not in command_line


def test_restored_nvram_is_what_qemu_writes_to(virsh: Virsh, rebuilt: Rebuild) -> None:
    made = rebuilt("uefi_q35", "qemu", isolate_to="drill-net", nvram_path="/restored/nvram.fd")
    command_line = virsh("domxml-to-native", "qemu-argv", virsh.file(made.xml))
    assert "/restored/nvram.fd" in command_line


def test_the_original_itself_would_reach_for_the_host(virsh: Virsh) -> None:
    """The counter-check: the same look at an original does find its paths."""
    command_line = virsh("domxml-to-native", "qemu-argv", virsh.file(machine("bios_i440fx")))
    assert MARKER in command_line


def test_a_preflight_sees_the_vms_that_are_there(
    virsh: Virsh, rebuilt: Rebuild, identity: Identity
) -> None:
    made = rebuilt("bios_i440fx", "qemu")
    need = needs(made, replace=False)
    with contextlib.closing(LibvirtHost(virsh.uri)) as host:
        before = problems(gather(host), need)
        virsh("define", virsh.file(made.xml))
        facts = gather(host)
    assert not any(identity.name in problem for problem in before)
    (found,) = [domain for domain in facts.domains if domain.name == identity.name]
    assert (found.uuid, found.macs, found.running) == (identity.uuid, need.macs, False)
    assert len(found.macs) == 1
    said = problems(facts, need)
    assert any(f"a VM named {identity.name!r} exists" in problem for problem in said)
    assert any("has the MAC address" in problem for problem in said)


def test_libvirtd_survives_what_is_made_of_every_hostile_definition(
    virsh: Virsh, identity: Identity
) -> None:
    """Each is defined or refused within seconds, and ``refusal`` knew it before."""
    spec = DefinitionSpec(identity, {"vda": DiskImage("/restored/vda.qcow2", "qcow2")})
    pids = libvirtd_pids()
    surprised = []
    with contextlib.closing(LibvirtHost(virsh.uri)) as host:
        for name, xml in DISARMED.items():
            made = rebuild(xml, dataclasses.replace(spec, virt_type="qemu")).xml
            refusal = host.refusal(made)
            try:
                host.define(made).undefine()
            except HostUnreachable:
                raise
            except HostError as error:
                if refusal is None:
                    surprised.append(f"{name}: {error.message}")
            else:
                assert refusal is None, name
    assert surprised == []
    assert libvirtd_pids() == pids


def libvirtd_pids() -> list[str]:
    names = Path("/proc").glob("[0-9]*/comm")
    return sorted(str(name) for name in names if name.read_text().strip() == "libvirtd")
