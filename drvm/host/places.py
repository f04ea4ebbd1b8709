"""Where libvirtd keeps what belongs to machines and lies in no disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drvm.host import tpm


@dataclass(frozen=True, slots=True)
class StatePlaces:
    """``nvram``: UEFI variables, ``<name>_VARS.fd`` where the definition names no file; ``tpm``:
    see ``host.tpm``; ``machines``: a directory for each machine that runs."""

    nvram: Path
    tpm: Path
    machines: Path


SYSTEM = StatePlaces(
    nvram=Path("/var/lib/libvirt/qemu/nvram"),
    tpm=tpm.ROOT,
    machines=Path("/var/lib/libvirt/qemu"),
)
"""Of a libvirtd that runs as root."""
