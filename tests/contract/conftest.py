"""A machine without a guest system, for what is asked of libvirt and QEMU alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from drvm.core.process import Processes
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain
from drvm.lab.guest import workspace
from tests.guests import unique_name


@pytest.fixture
def images(processes: Processes) -> Iterator[dict[str, Path]]:
    """Two qcow2 and a raw one, of 16 MiB."""
    with workspace(unique_name("bare")) as directory:
        made = {}
        for target, kind in (("vda", "qcow2"), ("vdb", "qcow2"), ("vdc", "raw")):
            made[target] = directory / f"{target}.{kind}"
            argv = ["qemu-img", "create", "-q", "-f", kind, str(made[target]), "16M"]
            processes.run(argv, timeout_s=30)
        yield made


@pytest.fixture
def domain(libvirt_uri: str, images: dict[str, Path]) -> Iterator[Domain]:
    """It runs on ``images``."""
    disks = "".join(
        f"<disk type='file'><driver name='qemu' type='{path.suffix[1:]}'/>"
        f"<source file={quoteattr(str(path))}/><target dev='{target}' bus='virtio'/></disk>"
        for target, path in images.items()
    )
    with contextlib.closing(LibvirtHost(libvirt_uri)) as host:
        made = host.define(
            f"<domain type='qemu'><name>{unique_name('bare')}</name>"
            "<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>"
            f"<devices>{disks}<disk type='file' device='cdrom'>"
            "<target dev='sda' bus='sata'/></disk></devices></domain>"
        )
        try:
            made.start()
            yield made
        finally:
            made.destroy()
            made.undefine()
