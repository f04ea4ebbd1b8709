"""Images are taken out of chains, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError
from drvm.snapshot.chainxml import on_own_images, with_disk_on_base, without_layer
from drvm.snapshot.domainxml import Layer, read
from drvm.snapshot.journal import JournalDisk

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
POINT = "0123456789abcdef"


def domain(disks: str) -> str:
    return f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>web</name><uuid>{UUID}</uuid><os/>
    <metadata><x:note xmlns:x='http://example.org/x' by='ops'>keep</x:note></metadata>
    <devices>{disks}<graphics type='vnc' passwd='s3cret'/></devices>
    <qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"""


ON_OVERLAY = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
<source file='/i/a.qcow2.drvm-0123456789abcdef.overlay' index='5'/>
<backingStore type='file' index='3'><format type='raw'/><source file='/i/a.img'/>
<backingStore type='file' index='4'><format type='raw'/><source file='/i/t.img'/><backingStore/>
</backingStore></backingStore><target dev='vda' bus='virtio'/></disk>"""


def test_moving_a_disk_to_its_base_keeps_all_else_as_it_was() -> None:
    overlay = Path("/i/a.qcow2.drvm-0123456789abcdef.overlay")
    moved = with_disk_on_base(
        domain(ON_OVERLAY), "vda", overlay, Layer("file", Path("/i/a.img"), "raw")
    )
    disk = read(moved).disks[0]
    assert [str(layer.path) for layer in disk.layers] == ["/i/a.img", "/i/t.img"]
    assert disk.layers[0].format == "raw"
    assert "overlay" not in moved
    for kept in ("s3cret", "cache='none'", "<qemu:arg", "<x:note", "keep", "bus='virtio'"):
        assert kept.replace("'", '"') in moved


def test_a_block_device_becomes_a_block_device_again_even_without_a_backing_store() -> None:
    plain = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
    <source file='/o/x.overlay'/><target dev='vdb'/></disk>"""
    base = Layer("block", Path("/dev/vg/lv"), "raw")
    disk = read(with_disk_on_base(domain(plain), "vdb", Path("/o/x.overlay"), base)).disks[0]
    assert disk.layers == (Layer("block", Path("/dev/vg/lv"), "raw"),)


def test_a_disk_that_is_not_on_the_overlay_is_not_moved() -> None:
    with pytest.raises(HostError):
        with_disk_on_base(
            domain(ON_OVERLAY), "vda", Path("/i/other"), Layer("file", Path("/i/a.img"), "raw")
        )


def disk_xml(target: str, chain: list[Layer]) -> str:
    """As libvirt writes it."""

    def source(layer: Layer) -> str:
        return f"<source {'dev' if layer.kind == 'block' else 'file'}='{layer.path}'/>"

    below = "".join(
        f"<backingStore type='{layer.kind}'><format type='{layer.format}'/>{source(layer)}"
        for layer in chain[1:]
    )
    return (
        f"<disk type='{chain[0].kind}' device='disk'><driver name='qemu' type='{chain[0].format}'/>"
        f"{source(chain[0])}{below}{'</backingStore>' * (len(chain) - 1)}"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


def overlay_of(target: str, base: Layer) -> JournalDisk:
    path = f"/o/{target}.drvm-{POINT}.overlay"
    kind = "block" if base.kind == "block" else "file"
    return JournalDisk(target, str(base.path), base.format or "", kind, path, "standing")


layers = st.builds(
    lambda kind, name, image_format: Layer(kind, Path("/i", name), image_format),
    st.sampled_from(["file", "block"]),
    st.text("abc", min_size=1, max_size=3),
    st.sampled_from(["raw", "qcow2"]),
)
chains = st.lists(layers, min_size=1, max_size=3, unique_by=lambda layer: layer.path)
machines = st.dictionaries(st.sampled_from(["vda", "vdb", "sdc"]), chains, min_size=1)


@given(machines, st.sets(st.sampled_from(["vda", "vdb", "sdc"])), st.booleans())
def test_a_definition_is_as_it_was_before_overlays_came(
    machine: dict[str, list[Layer]], standing: set[str], told: bool
) -> None:
    """Also where libvirt does not write down what lies below the first image (not ``told``)."""
    before = {t: chain if told or t not in standing else chain[:1] for t, chain in machine.items()}
    plain = domain("".join(disk_xml(t, chain) for t, chain in before.items()))
    overlays = {t: overlay_of(t, chain[0]) for t, chain in machine.items() if t in standing}
    raised = domain(
        "".join(
            disk_xml(
                t,
                [Layer("file", Path(overlays[t].overlay), "qcow2"), *chain][: None if told else 1],
            )
            if t in overlays
            else disk_xml(t, chain)
            for t, chain in before.items()
        )
    )
    found = on_own_images(raised, overlays.values())
    assert read(found) == read(plain)
    assert ".overlay" not in found
    for kept in ("s3cret", "<qemu:arg", "<x:note", "keep", 'bus="virtio"' if overlays else "bus="):
        assert kept in found


@given(chains, layers, st.integers(0, 3))
def test_a_layer_that_goes_leaves_the_chain_closed(
    chain: list[Layer], gone: Layer, at: int
) -> None:
    if any(layer.path == gone.path for layer in chain):
        return
    place = min(1 + at, len(chain))
    with_it = [*chain[:place], gone, *chain[place:]]
    assert gone.path is not None
    found = without_layer(domain(disk_xml("vda", with_it)), "vda", gone.path)
    assert read(found) == read(domain(disk_xml("vda", chain)))
    assert without_layer(found, "vda", gone.path) == found
