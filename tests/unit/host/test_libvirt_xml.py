"""What libvirt says of a host, read."""

from __future__ import annotations

import pytest

from drvm.core.errors import HostError
from drvm.host.libvirt_xml import bridges, qemu_user, source_index, with_cpu_of

DEVICES = (
    "<interface type='ethernet' name='eno1'/>",
    "<interface type='bridge' name='br0'><bridge><interface name='eno1'/></bridge></interface>",
)


def test_bridges_are_told_from_other_devices() -> None:
    assert bridges(DEVICES) == {"br0"}


def test_beside_open_vswitch_every_device_may_be_a_bridge() -> None:
    switch = ("<interface type='ethernet' name='ovs-system'/>",)
    assert bridges(DEVICES + switch) == {"br0", "eno1", "ovs-system"}


def test_the_user_of_machines_is_that_of_libvirts_own_access_control() -> None:
    label = "<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel></secmodel>"
    other = "<secmodel><model>apparmor</model><baselabel type='kvm'>x:1</baselabel></secmodel>"
    told = "<capabilities><host>{}</host></capabilities>"
    assert qemu_user(told.format(other + label)) == (64055, 109)
    assert qemu_user(told.format(other)) is None


def test_the_image_of_a_disk_has_libvirts_number() -> None:
    disk = "<disk><source file='/a' index='{}'/><target dev='{}'/></disk>"
    domain = f"<domain><devices>{disk.format(3, 'vda')}{disk.format('x', 'vdb')}</devices></domain>"
    assert source_index(domain, "vda") == 3
    for absent in ("vdb", "vdc"):
        with pytest.raises(HostError, match=absent):
            source_index(domain, absent)


def test_a_machine_is_brought_back_with_the_processor_that_it_had() -> None:
    saved = "<domain><name>old</name><cpu mode='custom'><model>a</model></cpu></domain>"
    mine = "<domain><name>new</name><cpu mode='host-model'/></domain>"
    made = with_cpu_of(saved, mine)
    assert "new" in made and "old" not in made
    assert "custom" in made and "host-model" not in made
    assert "<cpu" not in with_cpu_of("<domain/>", mine)
