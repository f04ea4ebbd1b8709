"""What drvm believes of libvirt, asked of a real libvirtd."""

from __future__ import annotations

import contextlib
import grp
import pwd
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import AgentError, HostError, HostUnreachable, UnknownVm
from drvm.core.progress import Trace
from drvm.host.libvirt_events import run_event_loop
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import DomainState
from tests.guests import unique_name
from tests.killing import ENDED, end_at

pytestmark = pytest.mark.guest

LIBVIRTD = "/run/libvirt/libvirt-sock"


def definition(name: str) -> str:
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>
    <os><type arch='x86_64' machine='q35'>hvm</type></os>
    <devices><video><model type='vga'/></video></devices></domain>"""


@pytest.fixture
def host(libvirt_uri: str) -> Iterator[LibvirtHost]:
    with contextlib.closing(LibvirtHost(libvirt_uri)) as host:
        yield host


def test_a_machine_that_does_not_exist_is_told_by_both_questions(host: LibvirtHost) -> None:
    assert host.find_domain("no-such-machine") is None
    assert host.find_domain("3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001") is None
    with pytest.raises(UnknownVm, match="no-such-machine"):
        host.domain("no-such-machine")


def test_the_memory_that_is_left_is_about_what_the_kernel_says(host: LibvirtHost) -> None:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kernel = {name.rstrip(":"): int(kib) << 10 for name, kib, *_ in lines}
    told = host.available_memory_bytes()
    assert told is not None
    assert abs(told - kernel["MemAvailable"]) < kernel["MemTotal"] // 4


def test_a_transient_machine_ends_with_the_connection(host: LibvirtHost, libvirt_uri: str) -> None:
    name = unique_name("transient")
    domain = host.start_transient(definition(name))
    with contextlib.closing(LibvirtHost(libvirt_uri)) as other:
        assert other.domain(domain.uuid).state() is DomainState.RUNNING
        host.close()
        for _ in range(100):
            if other.find_domain(name) is None:
                return
            threading.Event().wait(0.1)
        pytest.fail("it still runs")


def test_a_running_machine_without_an_agent_or_disks(
    host: LibvirtHost, capfd: pytest.CaptureFixture[str]
) -> None:
    domain = host.start_transient(definition(unique_name("bare")))
    assert domain.screenshot().startswith(b"\x89PNG")
    assert domain.filesystems_frozen() is None
    for call in (domain.agent_ping, domain.thaw, lambda: domain.guest_run(["true"])):
        with pytest.raises(AgentError):
            call()
    with pytest.raises(HostError):
        domain.commit_start("vda")
    assert domain.domain_job() is None
    assert not domain.has_managed_save()
    domain.destroy()
    domain.destroy()
    domain.undefine()
    with pytest.raises(UnknownVm):
        domain.state()
    assert capfd.readouterr() == ("", ""), "libvirt printed"


def test_a_machine_is_defined_started_and_forgotten(host: LibvirtHost) -> None:
    domain = host.define(definition(unique_name("defined")))
    try:
        assert domain.state() is DomainState.SHUTOFF
        assert domain.domain_job() is None
        assert domain.name in [known.name for known in host.domains()]
        domain.start()
        assert domain.state() is DomainState.RUNNING
    finally:
        domain.destroy()
        domain.undefine()
    assert host.find_domain(domain.uuid) is None


def test_what_the_host_can_run_and_where_it_keeps_things(host: LibvirtHost) -> None:
    able = host.capabilities()
    assert able.arch == "x86_64"
    assert "qemu" in able.virt_types
    assert {"q35", "pc"} <= able.machines
    assert "bios" in able.firmwares
    with pytest.raises(HostError, match="no-such-pool"):
        host.pool("no-such-pool")


def test_machines_run_as_the_user_that_the_host_tells(host: LibvirtHost) -> None:
    """Debian's; ``qemu.conf`` of the tests' host does not say another."""
    uid, gid = host.qemu_user() or (0, 0)
    names = {pwd.getpwuid(uid).pw_name, grp.getgrgid(gid).gr_name}
    assert names == {"libvirt-qemu"}


def test_a_network_lives_until_it_is_destroyed(host: LibvirtHost) -> None:
    name = unique_name("net")
    host.create_network(f"<network><name>{name}</name></network>")
    try:
        assert name in host.network_names()
        (setting,) = Path("/proc/sys/net/ipv4/conf", host.network_bridge(name)).glob("rp_filter")
        assert setting.read_text() == "1\n", "the host answers no machine there"
    finally:
        host.destroy_network(name)
        host.destroy_network(name)
    assert name not in host.network_names()


def test_no_libvirtd_is_an_error_that_says_what_to_look_at(tmp_path: Path) -> None:
    host = LibvirtHost(f"qemu+unix:///system?socket={tmp_path}/nobody")
    with pytest.raises(HostUnreachable) as caught:
        host.domains()
    assert caught.value.retryable
    assert "libvirtd" in caught.value.hint


class CuttableWay:
    """A socket that leads to libvirtd, until its connections are cut."""

    def __init__(self, path: Path) -> None:
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(LIBVIRTD)
                self._ends += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_lost_connection_is_opened_anew(libvirt_uri: str, tmp_path: Path) -> None:
    with contextlib.closing(CuttableWay(tmp_path / "way")) as way:
        host = LibvirtHost(f"qemu+unix:///system?socket={tmp_path}/way")
        before = host.hostname()
        for _ in range(3):
            way.cut()
            assert host.hostname() == before
            assert host.find_domain("no-such-machine") is None
        host.close()


@pytest.mark.parametrize(
    ("cpu", "reason"),
    [
        ("<cpu mode='custom' match='exact'><model>qemu64</model></cpu>", ""),
        ("<cpu mode='custom'><model>qemu64</model><feature name='amx-tile'/></cpu>", "amx-tile"),
        ("<cpu mode='custom' check='none'><model>qemu64</model><feature name='3dnow'/></cpu>", ""),
        ("<cpu mode='custom' match='exact'><model>No-Such</model></cpu>", "No-Such"),
        ("<cpu mode='host-passthrough' check='none'/>", "no host-passthrough"),
        ("<cpu mode='maximum'/>", ""),
        ("<cpu><topology sockets='1' cores='1' threads='1'/></cpu>", ""),
        ("", ""),
    ],
)
def test_a_processor_that_an_emulated_machine_cant_have_is_told(
    host: LibvirtHost, cpu: str, reason: str
) -> None:
    found = host.cpu_obstacle(definition("x").replace("<devices>", f"{cpu}<devices>"))
    assert (found is None) == (not reason)
    if found is not None:
        assert reason in found.reason
        assert {"maximum", "qemu64"} <= set(found.usable)


def test_the_machine_type_that_a_host_lacks_is_no_matter_of_its_processor(
    host: LibvirtHost,
) -> None:
    cpu = "<cpu mode='custom'><model>qemu64</model></cpu><devices>"
    other = definition("x").replace("q35", "pc-1.0").replace("<devices>", cpu)
    assert host.cpu_obstacle(other) is None


def test_bridges_are_a_set_of_names(host: LibvirtHost) -> None:
    found = host.bridges()
    assert found is None or "lo" not in found


def test_a_forked_process_gets_its_own_answers_beside_the_event_loop(libvirt_uri: str) -> None:
    run_event_loop()
    with contextlib.closing(LibvirtHost(libvirt_uri)) as host:
        name = host.hostname()

        def ask(_: Trace) -> None:
            signal.alarm(30)  # ends the child where an answer never comes
            assert [host.hostname() for _ in range(20)] == [name] * 20

        assert end_at("", ask) == ENDED
        assert host.hostname() == name
