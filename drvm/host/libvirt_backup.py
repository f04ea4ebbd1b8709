"""libvirt's backup jobs, and the other jobs that exclude them.

A machine has one such job at a time (libvirt calls it an async job); asking for a second one
blocks for 30 s and then fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt

_KINDS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "save",
    libvirt.VIR_DOMAIN_JOB_OPERATION_RESTORE: "restore",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "dump",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "backup",
}


def job(domain: Any) -> str | None:
    """What kind of job the machine has, ``None`` where it has none or is off."""
    try:
        told = domain.jobStats()
    except libvirt.libvirtError:
        if not domain.isActive():
            return None
        raise
    if not told.get("type", 0):
        return None
    return _KINDS.get(told.get(libvirt.VIR_DOMAIN_JOB_OPERATION), "other")


def begin(domain: Any, backup_xml: str, checkpoint_xml: str | None) -> None:
    domain.backupBegin(backup_xml, checkpoint_xml, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)


def xml(domain: Any) -> str | None:
    try:
        return str(domain.backupGetXMLDesc(0))
    except libvirt.libvirtError as problem:
        if problem.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return None
        raise


def own_directory(domain: Any, machines: Path) -> Path | None:
    """The directory that libvirt makes for each machine that runs: ``domain-<id>-<name>``, the
    name cut (``virDomainDefGetShortName``). AppArmor's profile of the machine lets QEMU make files
    in it (``virt-aa-helper.c``), which it may do in few other places."""
    if not domain.isActive():
        return None
    prefix = f"domain-{domain.ID()}-"
    for path in machines.glob(f"{prefix}?*"):
        if domain.name().startswith(path.name.removeprefix(prefix)):
            return path
    return None
