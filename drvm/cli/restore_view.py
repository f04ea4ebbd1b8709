"""What a restore will do and has done, for people and for tools."""

from __future__ import annotations

from typing import Any

from drvm.cli.invocation import Invocation
from drvm.cli.views import short_time
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.restore.machine.difference import difference
from drvm.restore.plan import RestorePlan
from drvm.restore.run import Restored
from drvm.restore.targets.images import PlannedImage


def show_plan(invocation: Invocation, plan: RestorePlan, uri: str) -> None:
    output, definition = invocation.output, plan.definition
    changes = difference(plan.original_xml, definition.xml)
    if output.json:
        fields = {
            "point": plan.manifest.id,
            "to": uri,
            "pools": [{"pool": name, "need_bytes": n} for name, n in plan.room.items()],
            "images": image_fields(plan.images),
            "need_bytes": plan.need_bytes,
            "sysprep": plan.sysprep,
            "running": plan.memory is not None,
            "has_memory": plan.manifest.memory is not None,
            "left_out": definition.dropped,
            "changed": definition.changed,
            "definition_difference": changes,
        }
        output.document({"plan": fields})
        return
    created = short_time(plan.manifest.created)
    output.line(f"{plan.manifest.vm}, point {plan.manifest.id} of {created} UTC, to {uri}")
    list_images(invocation, plan.images)
    for pool, need_bytes in plan.room.items():
        output.line(f"  needs up to {format_bytes(need_bytes)} in pool {pool}")
    if plan.manifest.memory is not None:
        memory = format_bytes(plan.manifest.memory.size_bytes)
        how = "it goes on from there" if plan.memory else "--running lets it go on from there"
        output.line(f"  holds its memory, {memory}: {how}")
    if plan.sysprep:
        output.line(f"  inside the disks anew: {', '.join(plan.sysprep)}")
    for title, lines in (("changed", definition.changed), ("left out", definition.dropped)):
        for line in lines:
            output.line(f"  {title}: {line}")
    output.block(changes)


def list_images(invocation: Invocation, images: tuple[PlannedImage, ...]) -> None:
    for image in images:
        size = format_bytes(image.size_bytes)
        invocation.output.line(f"  {image.disk.target}: {size} {image.format} -> {image.path}")


def image_fields(images: tuple[PlannedImage, ...]) -> list[dict[str, Any]]:
    return [
        {
            "target": image.disk.target,
            "path": image.path,
            "format": image.format,
            "size_bytes": image.size_bytes,
        }
        for image in images
    ]


def tell_restored(
    invocation: Invocation, manifest: Manifest, restored: Restored, left: tuple[str, ...] = ()
) -> None:
    if invocation.output.json:
        fields = {
            "point": manifest.id,
            "vm": restored.name or None,
            "vm_uuid": restored.uuid or None,
            "files": restored.files,
            "written_bytes": restored.written_bytes,
            "left_files": left,
        }
        invocation.output.document({"restored": fields})
        return
    what = f"as {restored.name}" if restored.name else "to files"
    size = format_bytes(restored.written_bytes)
    invocation.output.line(f"restored point {manifest.id} of {manifest.vm} {what}: {size} written")
    for path in restored.files:
        invocation.output.line(f"  {path}")
    for old in left:
        invocation.output.line(f"  left where it was: {old}")
