"""What libvirt says of a host, read."""

from __future__ import annotations

from drvm.host.libvirt_xml import bridges

DEVICES = (
    "<interface type='ethernet' name='eno1'/>",
    "<interface type='bridge' name='br0'><bridge><interface name='eno1'/></bridge></interface>",
)


def test_bridges_are_told_from_other_devices() -> None:
    assert bridges(DEVICES) == {"br0"}


def test_beside_open_vswitch_every_device_may_be_a_bridge() -> None:
    switch = ("<interface type='ethernet' name='ovs-system'/>",)
    assert bridges(DEVICES + switch) == {"br0", "eno1", "ovs-system"}
