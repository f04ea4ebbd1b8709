"""Several clones of one point at once: each with an identity of its own, none with anything of the
original's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from drvm.core.process import Processes
from drvm.lab import guest as lab
from drvm.restore.sysprep import PROGRAM
from tests.appliance import Appliance, make_appliance
from tests.capturing import image_digest
from tests.commands import LIMIT_S
from tests.guests import Guest, MakeGuest, unique_name

pytestmark = pytest.mark.guest

MACS = ("52:54:00:aa:bb:01", "52:54:00:aa:bb:02")


@dataclasses.dataclass(frozen=True)
class Pool:
    name: str
    directory: Path


@contextlib.contextmanager
def made_pool(processes: Processes, uri: str) -> Iterator[Pool]:
    name = unique_name("clones")
    with lab.workspace(name) as directory:
        virsh = ["virsh", "-q", "-c", uri]
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
        processes.run(create, timeout_s=60)
        try:
            yield Pool(name, directory)
        finally:
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


@pytest.fixture(scope="module")
def pool(processes: Processes, libvirt_uri: str) -> Iterator[Pool]:
    with made_pool(processes, libvirt_uri) as pool:
        yield pool


@pytest.fixture
def fast(processes: Processes, libvirt_uri: str) -> Iterator[Pool]:
    with made_pool(processes, libvirt_uri) as pool:
        yield pool


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str) -> Appliance:
    directory = tmp_path_factory.mktemp("clones")
    made = make_appliance(directory, f"file://{directory}/store", None)
    made.drvm("init")
    return made


def definition(name: str, own: str, disks: dict[str, Path]) -> str:
    """It names its directory and its UUID wherever people write them."""
    devices = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{path.suffix[1:]}'/>"
        f"<source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
        for target, path in disks.items()
    )
    devices += "".join(
        f"<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"
        for mac in MACS
    )
    place = disks["vda"].parent
    return f"""<domain type='qemu'><name>{name}</name><uuid>{own}</uuid>
    <title>{name} of {place}</title><description>{own} lies in {place}/x</description>
    <memory unit='MiB'>64</memory>
    <sysinfo type='smbios'><system><entry name='uuid'>{own}</entry>
    <entry name='serial'>{own}</entry></system></sysinfo>
    <os><type arch='x86_64' machine='q35'>hvm</type><smbios mode='sysinfo'/></os>
    <devices>{devices}
    <serial type='file'><source path='{place}/serial.log'/></serial></devices></domain>"""


@pytest.fixture
def original(processes: Processes, tmp_path: Path) -> Iterator[Guest]:
    """A machine that is off, its disks deep in directories whose names lie in each other's."""
    name = unique_name("original")
    with lab.workspace(name) as directory:
        below = directory / "vm" / "vm-vda" / "vda.qcow2"
        below.mkdir(parents=True)
        disks = {"vda": below / "vda.qcow2", "vdb": below.parent / "vdb.raw"}
        for number, (path, kind) in enumerate(zip(disks.values(), ("qcow2", "raw"), strict=True)):
            argv = ["qemu-img", "create", "-q", "-f", kind, str(path), "4M"]
            processes.run(argv, timeout_s=30)
            write = f"write -P {number + 7} 64k 1M"
            processes.run(["qemu-io", "-f", kind, "-c", write, str(path)], timeout_s=30)
        xml = tmp_path / "domain.xml"
        xml.write_text(definition(name, str(uuid.uuid4()), disks))
        processes.run(["virsh", "-q", "-c", lab.URI, "define", str(xml)], timeout_s=60)
        machine = Guest(name, directory, disks, processes)
        try:
            yield machine
        finally:
            machine.remove()


def clone_at_once(
    appliance: Appliance, point: str, names: list[str], *options: str
) -> list[tuple[int, Any, str]]:
    """Exit code, document and stderr of each."""
    running = [
        subprocess.Popen(
            appliance.argv("--json", "clone", point, name, *options),
            env=dict(appliance.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    done = [process.communicate(timeout=LIMIT_S) for process in running]
    return [
        (process.returncode, json.loads(out) if process.returncode == 0 else None, err)
        for process, (out, err) in zip(running, done, strict=True)
    ]


def identity_of(tree: Element) -> set[str]:
    """All that may be of one machine only."""
    found = {tree.findtext("name", ""), tree.findtext("uuid", ""), tree.findtext("os/nvram", "")}
    found |= {mac.get("address", "") for mac in tree.iterfind("devices/interface/mac")}
    found |= {source.get("file", "") for source in tree.iterfind("devices/disk/source")}
    return found - {""}


def assert_apart(original: Guest, clones: list[Guest]) -> None:
    """From each other, and from the original in every place of the XML."""
    before = original.virsh("dumpxml", "--inactive")
    old = identity_of(fromstring(before))
    trees = [fromstring(clone.virsh("dumpxml", "--inactive")) for clone in clones]
    identities = [identity_of(tree) for tree in trees]
    assert sum(map(len, identities)) == len(set().union(*identities))
    for clone, tree in zip(clones, trees, strict=True):
        text = clone.virsh("dumpxml", "--inactive").lower()
        assert tree.findtext("name") == clone.name
        assert str(original.directory) not in text
        gone = old - {original.name}  # a title of a person's may name it
        assert [word for word in gone if word.lower() in text] == []


def test_clones_at_once_share_nothing_and_of_two_to_one_name_one_is_refused(
    original: Guest,
    appliance: Appliance,
    pool: Pool,
    fast: Pool,
    processes: Processes,
    tmp_path: Path,
) -> None:
    """Each with one disk in each of two pools."""
    where = ["--pool", pool.name, "--map-pool", f"{original.disks['vdb'].parent}={fast.name}"]
    point = appliance.backup(original.name)["id"]
    names = [unique_name("copy") for _ in range(3)]
    clones = [Guest(name, pool.directory, {}, processes) for name in names]
    try:
        done = clone_at_once(appliance, point, [*names, names[0]], *where)
        assert sorted(code for code, _, _ in done) == [0, 0, 0, 1], done
        (refused,) = [err for code, _, err in done if code]
        assert "under way" in refused or "exists" in refused or "has come" in refused, refused
        for place, kind in ((pool, "qcow2"), (fast, "raw")):
            there = sorted(path.suffix for path in place.directory.iterdir())
            assert there == [f".{kind}"] * 3, "what was refused left something"
        assert_apart(original, clones)
        for document in (document for code, document, _ in done if code == 0):
            files = [Path(path) for path in document["restored"]["files"]]
            for (target, path), file in zip(original.disks.items(), files, strict=True):
                kind = path.suffix[1:]
                found = image_digest(file, kind, tmp_path, processes)
                assert found == image_digest(path, kind, tmp_path, processes), target
    finally:
        for clone in clones:
            clone.remove()


@pytest.mark.long
def test_three_clones_of_a_machine_with_uefi_and_a_tpm_run_at_once(
    make_guest: MakeGuest, appliance: Appliance, pool: Pool, processes: Processes
) -> None:
    guest = make_guest("whole", uefi=True)
    guest.run("echo precious > /data/file; sync")
    point = appliance.backup(guest.name)["id"]
    names = [unique_name("run") for _ in range(3)]
    clones = [Guest(name, pool.directory, {}, processes) for name in names]
    try:
        done = clone_at_once(appliance, point, names, "--pool", pool.name, "--start")
        assert [code for code, _, _ in done] == [0, 0, 0], done
        for clone in clones:
            clone.wait_for_agent()
            assert clone.run("cat /data/file") == "precious\n"
        assert_apart(guest, clones)
    finally:
        for clone in clones:
            clone.remove()


@pytest.mark.long
def test_a_sysprepped_clone_has_lost_what_was_its_original_s_own_and_nothing_else(
    make_guest: MakeGuest, appliance: Appliance, pool: Pool, processes: Processes
) -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip("no virt-sysprep on this host (Debian: guestfs-tools)")
    guest = make_guest("sysprep")
    guest.run(
        "mkdir -p /etc/ssh /root/.ssh; echo 0123456789abcdef0123456789abcdef >/etc/machine-id; "
        "echo secret >/etc/ssh/ssh_host_rsa_key; echo mine >/root/.ssh/authorized_keys; "
        "grep -q ^ID= /etc/os-release || printf 'ID=debian\\nVERSION_ID=12\\n' >>/etc/os-release; "
        "echo 127.0.0.1 localhost >/etc/hosts; echo precious >/data/file; sync"
    )
    users = guest.run("cat /etc/passwd")
    point = appliance.backup(guest.name)["id"]
    name = unique_name("own")
    clone = Guest(name, pool.directory, {}, processes)
    try:
        options = ("--pool", pool.name, "--virt-type", "qemu", "--sysprep", "default", "--start")
        appliance.drvm("clone", point, name, *options)
        clone.wait_for_agent()
        assert "0123456789abcdef" not in clone.run("cat /etc/machine-id 2>/dev/null; true")
        assert clone.run("ls /etc/ssh") == ""
        assert clone.run("cat /root/.ssh/authorized_keys /data/file") == "mine\nprecious\n"
        assert clone.run("cat /etc/passwd") == users
    finally:
        clone.remove()
