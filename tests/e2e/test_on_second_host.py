"""Forms that need drvm on the KVM host itself, on a second one: it has the repository and the
passphrase, and nothing else of the first. From elsewhere they are refused, with what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import drvm
from drvm.core.process import Processes
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest
from tests.second_host import SecondHost, second_host

pytestmark = [pytest.mark.guest, pytest.mark.long]

LOOK = "cat /proc/sys/kernel/random/boot_id /run/only-in-memory"
SUMS = "sha256sum /data/noise /root/noise; ls /data /root"
There = Callable[..., str]


@pytest.fixture(scope="module")
def second(processes: Processes, libvirt_uri: str) -> Iterator[SecondHost]:
    with second_host(processes) as host:
        yield host


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    guest = make_module_guest("both")
    guest.run(
        "echo told > /run/only-in-memory; echo hello > /data/hello;"
        "for d in /root /data; do head -c 3000000 /dev/urandom > $d/noise; done; sync"
    )
    return guest


@pytest.fixture(scope="module")
def point(guest: Guest, appliance: Appliance) -> dict[str, Any]:
    return appliance.backup(guest.name, "--memory")


@pytest.fixture(scope="module")
def there(second: SecondHost, appliance: Appliance) -> There:
    """drvm on the second host, to its end; what it printed."""
    environment = {**appliance.env, "PYTHONPATH": str(Path(drvm.__file__).parents[1])}

    def run(*arguments: str) -> str:
        argv = appliance.argv(*arguments)
        return second.run(argv, timeout_s=300, env=environment).stdout.decode()

    return run


def test_a_machine_goes_on_from_its_memory_there_and_is_turned_back_in_place(
    second: SecondHost, guest: Guest, point: dict[str, Any], there: There
) -> None:
    before, sums = guest.run(LOOK), guest.run(SUMS)
    there("restore", point["id"], "--running")
    machine = Guest(guest.name, second.images, {}, guest.processes, second.uri)
    try:
        machine.wait_for_agent()
        assert machine.run(LOOK) == before, "it goes on: the same boot, the same memory"
        machine.run("sync; echo 3 > /proc/sys/vm/drop_caches")
        assert machine.run(SUMS) == sums
        assert str(guest.directory) not in machine.virsh("dumpxml")
        machine.run("rm /data/noise; head -c 500000 /dev/urandom > /root/noise; touch /root/new")
        machine.run("sync")
        machine.shutdown()
        there("restore", point["id"], "--in-place", "--yes", "--start")
        machine.wait_for_agent()
        assert machine.run(SUMS) == sums
        assert machine.run("cat /proc/sys/kernel/random/boot_id") not in before
    finally:
        machine.remove()
    assert guest.run(LOOK) == before, "the first host's machine is another"


def test_files_come_out_of_the_point_there(
    guest: Guest, point: dict[str, Any], there: There, tmp_path: Path
) -> None:
    assert there("files", "cat", point["id"], "/dev/vdb:/hello") == "hello\n"
    there("files", "get", point["id"], "/dev/vdb:/noise", "--output", str(tmp_path / "out"))
    copied = guest.processes.run(["sha256sum", str(tmp_path / "out/noise")], timeout_s=30)
    assert copied.stdout.split()[0].decode() in guest.run(SUMS)


@pytest.mark.parametrize("options", [("--in-place", "--yes"), ("--running",)])
def test_from_elsewhere_it_is_refused_with_what_helps(
    second: SecondHost, appliance: Appliance, point: dict[str, Any], options: tuple[str, ...]
) -> None:
    before = set(second.images.iterdir())
    failed = appliance.drvm("restore", point["id"], *options, "--to", second.uri, expect=2)
    assert "drvm on the KVM host itself" in failed.err and "run it there" in failed.err
    assert set(second.images.iterdir()) == before
