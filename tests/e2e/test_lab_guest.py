"""The lab's guest can do what the tests and the demo rely on."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.process import Processes
from drvm.lab.disk import READY_LINE
from tests.guests import Guest, MakeGuest, unique_name

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def network(
    processes: Processes, libvirt_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An isolated network with DHCP."""
    name = unique_name("net")
    definition = tmp_path_factory.mktemp("net") / "net.xml"
    subnet = f"10.78.{os.getpid() % 256}"  # two runs at once don't meet
    definition.write_text(
        f"<network><name>{name}</name><ip address='{subnet}.1' netmask='255.255.255.0'>"
        f"<dhcp><range start='{subnet}.10' end='{subnet}.20'/></dhcp></ip></network>"
    )
    processes.run(["virsh", "-c", libvirt_uri, "net-create", str(definition)], timeout_s=60)
    yield name
    processes.run(["virsh", "-c", libvirt_uri, "net-destroy", name], timeout_s=60)


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest, network: str) -> Guest:
    return make_module_guest("lab", network=network)


def test_the_guest_boots_from_its_own_disk_and_says_so_on_the_serial_console(guest: Guest) -> None:
    assert READY_LINE in guest.serial_log
    assert "<kernel>" not in guest.virsh("dumpxml")


def test_a_failed_command_in_the_guest_is_an_error(guest: Guest) -> None:
    with pytest.raises(AssertionError, match="failed"):
        guest.run("exit 3")


def test_both_file_systems_freeze_and_thaw(guest: Guest) -> None:
    assert guest.agent("guest-fsfreeze-freeze") == 2
    assert guest.agent("guest-fsfreeze-status") == "frozen"
    assert guest.agent("guest-fsfreeze-thaw") == 2


def test_discards_reach_both_images(guest: Guest, processes: Processes) -> None:
    def allocated_bytes(path: Path) -> int:
        argv = ["qemu-img", "info", "-U", "--output=json", str(path)]
        return int(json.loads(processes.run(argv, timeout_s=30).stdout)["actual-size"])

    for target, folder in (("vda", "/tmp"), ("vdb", "/data")):
        guest.run(f"dd if=/dev/urandom of={folder}/big bs=1M count=32; sync")
        full = allocated_bytes(guest.disks[target])
        guest.run(f"rm {folder}/big; sync; fstrim {folder.replace('/tmp', '/')}")
        assert allocated_bytes(guest.disks[target]) < full - 24 * 1024 * 1024


def test_the_host_reads_the_guests_page_over_the_network(
    guest: Guest, processes: Processes
) -> None:
    address = (
        guest.run(
            "n=0; while [ $n -lt 100 ]; do ip -4 -o address show eth0 | grep -q inet && break;"
            " sleep 0.2; n=$((n+1)); done; ip -4 -o address show eth0"
        )
        .split()[3]
        .partition("/")[0]
    )
    with urllib.request.urlopen(f"http://{address}/", timeout=30) as reply:
        assert reply.read() == b"drvm lab guest\n"


@pytest.mark.long
def test_the_guest_comes_back_with_its_data_after_a_shutdown(guest: Guest) -> None:
    guest.run("echo kept >/data/note; sync")
    guest.shutdown()
    guest.start()
    assert guest.run("cat /data/note") == "kept\n"
