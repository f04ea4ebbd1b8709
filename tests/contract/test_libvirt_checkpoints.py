"""What drvm believes of libvirt's checkpoints, asked of a real libvirtd; no guest system needed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from drvm.core.errors import HostError
from drvm.core.process import Processes
from drvm.host.images import ImageTool
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain
from drvm.lab import guest as lab

pytestmark = pytest.mark.guest


def checkpoint(name: str, *targets: str) -> str:
    disks = "".join(f"<disk name='{target}' checkpoint='bitmap'/>" for target in targets)
    return (
        f"<domaincheckpoint><name>{name}</name><description>drvm: words</description>"
        f"<disks>{disks}</disks></domaincheckpoint>"
    )


def test_only_named_disks_get_a_bitmap_and_the_description_is_kept(
    domain: Domain, images: dict[str, Path], processes: Processes
) -> None:
    domain.create_checkpoint(checkpoint("one", "vda"))
    text = domain.checkpoint_xml("one")
    assert "<description>drvm: words</description>" in text and "<domain " not in text
    marked = re.findall(r"<disk name='(\w+)' checkpoint='bitmap'", text)
    assert (domain.checkpoint_names(), marked) == (["one"], ["vda"])
    domain.destroy()
    tool = ImageTool(processes)
    names = [[b.name for b in tool.info(images[t], "qcow2").bitmaps] for t in ("vda", "vdb")]
    assert names == [["one"], []]


def test_a_raw_disk_makes_the_whole_checkpoint_fail(domain: Domain) -> None:
    with pytest.raises(HostError, match="raw"):
        domain.create_checkpoint(checkpoint("one", "vda", "vdc"))
    assert domain.checkpoint_names() == []
    with pytest.raises(HostError):
        domain.checkpoint_xml("one")


def test_a_stopped_machine_keeps_its_checkpoints_and_gives_none_away(domain: Domain) -> None:
    domain.create_checkpoint(checkpoint("one", "vda"))
    domain.destroy()
    assert domain.checkpoint_names() == ["one"]
    with pytest.raises(HostError, match="inactive"):
        domain.delete_checkpoint("one")
    with pytest.raises(HostError):
        domain.create_checkpoint(checkpoint("two", "vda"))
    domain.start()
    domain.delete_checkpoint("one")
    assert domain.checkpoint_names() == []


def test_one_that_lost_a_bitmap_is_deleted_with_the_others_that_it_has(
    domain: Domain, images: dict[str, Path], processes: Processes
) -> None:
    domain.create_checkpoint(checkpoint("one", "vda", "vdb"))
    domain.create_checkpoint(checkpoint("foreign", "vdb"))
    domain.destroy()
    argv = ["qemu-img", "bitmap", "--remove", "-f", "qcow2", str(images["vda"]), "one"]
    processes.run(argv, timeout_s=30)
    domain.start()
    domain.delete_checkpoint("one")
    assert domain.checkpoint_names() == ["foreign"]
    domain.destroy()
    tool = ImageTool(processes)
    names = [[b.name for b in tool.info(images[t], "qcow2").bitmaps] for t in ("vda", "vdb")]
    assert names == [[], ["foreign"]]


def test_every_bitmap_keeps_recording_and_deleting_one_loses_nothing_of_the_others(
    domain: Domain, images: dict[str, Path], processes: Processes
) -> None:
    for name in ("one", "foreign", "two", "three"):
        domain.create_checkpoint(checkpoint(name, "vda", "vdb"))
    domain.delete_checkpoint("two")
    domain.delete_checkpoint("one")
    assert domain.checkpoint_names() == ["foreign", "three"]
    domain.destroy()
    bitmaps = ImageTool(processes).info(images["vda"], "qcow2").bitmaps
    assert {b.name: set(b.flags) for b in bitmaps} == {"foreign": {"auto"}, "three": {"auto"}}


def test_a_machine_with_checkpoints_can_be_undefined(domain: Domain, libvirt_uri: str) -> None:
    domain.create_checkpoint(checkpoint("one", "vda"))
    domain.destroy()
    domain.undefine()
    with contextlib.closing(LibvirtHost(libvirt_uri)) as host:
        assert host.find_domain(domain.uuid) is None


def test_external_snapshots_are_told_from_internal_ones_also_with_memory(
    domain: Domain, images: dict[str, Path], processes: Processes
) -> None:
    def take(name: str, *options: str) -> None:
        argv = ["virsh", "-q", "-c", lab.URI, "snapshot-create-as", domain.name, name, *options]
        processes.run(argv, timeout_s=60)

    directory = images["vda"].parent
    on_vda = (f"vda,file={directory}/top.qcow2", "vdb,snapshot=no", "vdc,snapshot=no")
    take("memory", "--memspec", f"{directory}/m", *(w for d in on_vda for w in ("--diskspec", d)))
    assert domain.external_snapshot_names() == ["memory"]
    assert domain.snapshot_names() == ["memory"]
