"""UEFI variables and the firmware that reads them are two parts of one flash chip: they must fit.

OVMF is built for chips of several sizes (4 MiB today, 2 MiB in machines of some years ago), each
with another place for its variables; libvirt chooses a build without looking at the variables that
are there. A machine with those of another build starts without them, and keeps no new ones
(seen with OVMF 2022.11; ``tests/e2e/test_whole_machine.py`` holds it).
"""

from __future__ import annotations

import contextlib
import re
import stat
from dataclasses import replace
from pathlib import Path

from drvm.core.units import format_bytes
from drvm.host.model import Host
from drvm.restore.machine.definition import Definition, DefinitionSpec, rebuild
from drvm.restore.machine.source import parse

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_SIZE = slice(24, 32)  # big-endian, docs/interop/qcow2.txt
_LOADER = re.compile(
    r"/usr/share/(OVMF|ovmf|edk2|edk2-ovmf|qemu|AAVMF)(/[A-Za-z0-9_][A-Za-z0-9_.-]*){1,3}\.fd",
    re.ASCII,
)
"""Where distributions put firmware: a file there may be named by a hostile definition too."""


def rebuild_to_fit(
    host: Host, original_xml: str, spec: DefinitionSpec, nvram: bytes | None
) -> tuple[Definition, tuple[str, ...]]:
    """The definition of ``rebuild``, with a firmware that fits ``nvram``; or what stands in the
    way, a line each. What can't be found out does not stand in the way."""
    definition = rebuild(original_xml, spec)
    if nvram is None or host.remote:  # the firmware is a file of that machine's
        return definition, ()
    chosen = host.firmware_file(definition.xml)
    if chosen is None or _fits(chosen, nvram) is not False:
        return definition, ()
    loader = _loader_of(original_xml)
    if loader is not None and _fits(loader, nvram):
        return rebuild(original_xml, replace(spec, loader=str(loader))), ()
    return definition, (
        f"its UEFI variables ({format_bytes(len(nvram))}) are of another build of the firmware "
        f"than {chosen}, which {host.uri} would start it with: install the one that it had "
        f"({'its definition names none' if loader is None else loader})",
    )


def _fits(code: Path, nvram: bytes) -> bool | None:
    """Together they fill a chip, whose size is a power of two. ``None``: nobody can say."""
    with contextlib.suppress(OSError):
        status = code.stat()
        if not stat.S_ISREG(status.st_mode):
            return False
        chip_bytes = status.st_size + _flash_bytes(nvram)
        return chip_bytes & (chip_bytes - 1) == 0
    return None


def _flash_bytes(nvram: bytes) -> int:
    if nvram.startswith(_QCOW2_MAGIC):
        return int.from_bytes(nvram[_QCOW2_SIZE], "big")
    return len(nvram)


def _loader_of(original_xml: str) -> Path | None:
    text = (parse(original_xml).findtext("os/loader") or "").strip()
    return Path(text) if _LOADER.fullmatch(text) else None
