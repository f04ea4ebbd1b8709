"""Points as tools and people see them: stable fields, units in names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from drvm.cli.output import Column, Output
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.repository.pins import Pin

_SHOWN_CHARS = 300


def point_fields(
    manifest: Manifest, pins: Sequence[Pin] = (), own: bool | None = None
) -> dict[str, Any]:
    """The fields that tools rely on; later versions add, and never rename. ``own``, where it was
    found out: whether this host itself wrote the point, which ``host`` only says."""
    return {
        **({"own": own} if own is not None else {}),
        "id": manifest.id,
        "vm": manifest.vm,
        "vm_uuid": manifest.vm_uuid,
        "created": manifest.created,
        "finished": manifest.finished,
        "status": "good",
        "consistency": manifest.consistency,
        "engine": manifest.engine,
        "host": manifest.host,
        "drvm_version": manifest.drvm_version,
        "parent": manifest.parent,
        "group": manifest.group,
        "copied_from": copied_from(manifest),
        "frozen_seconds": manifest.frozen_seconds,
        "stored_bytes": manifest.stored_bytes,
        "warnings": manifest.warnings,
        "pins": [{"note": pin.note, "created": pin.created, "host": pin.host} for pin in pins],
        "guest": manifest.guest,
        "disks": [
            {
                "target": disk.target,
                "size_bytes": disk.size_bytes,
                "format": disk.format,
                "read_bytes": disk.read_bytes,
                "new_bytes": disk.new_bytes,
                "stored_bytes": disk.stored_bytes,
                "method": disk.method,
            }
            for disk in manifest.disks
        ],
        "memory_bytes": None if manifest.memory is None else manifest.memory.size_bytes,
    }


def copied_from(manifest: Manifest) -> dict[str, str] | None:
    origin = manifest.copied_from
    if origin is None:
        return None
    return {"repository": origin.repository, "host": origin.host, "at": origin.at}


def show_points(
    output: Output,
    manifests: Sequence[Manifest],
    pins: Mapping[str, Sequence[Pin]] = MappingProxyType({}),
    foreign: frozenset[str] = frozenset(),
) -> None:
    """The column of pins is there if any of the points has one. ``foreign``: ids of points that
    other hosts wrote."""
    columns = [
        Column("point"),
        Column("vm"),
        Column("created (UTC)"),
        Column("consistency"),
        Column("disks", right=True),
        Column("size", right=True),
        Column("new", right=True),
        Column("stored", right=True),
        Column("host"),
    ]
    rows = [
        [
            manifest.id,
            manifest.vm,
            short_time(manifest.created),
            manifest.consistency,
            str(len(manifest.disks)),
            format_bytes(sum(disk.size_bytes for disk in manifest.disks)),
            format_bytes(sum(disk.new_bytes for disk in manifest.disks)),
            format_bytes(manifest.stored_bytes),
            f"{manifest.host} (foreign)" if manifest.id in foreign else manifest.host,
        ]
        for manifest in manifests
    ]
    if any(manifest.id in pins for manifest in manifests):
        columns.append(Column("pinned", wraps=True))
        for manifest, row in zip(manifests, rows, strict=True):
            row.append(pin_text(pins.get(manifest.id, ())))
    output.table(columns, rows)


def pin_text(pins: Sequence[Pin]) -> str:
    """The notes, ``yes`` where there are none; empty where nothing is pinned."""
    return "; ".join(pin.note for pin in pins if pin.note) or ("yes" if pins else "")


def short_time(moment: str) -> str:
    """``2026-11-23T04:00:00.123456Z`` -> ``2026-11-23 04:00:00``."""
    return moment[:19].replace("T", " ")
