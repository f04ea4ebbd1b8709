"""``drvm restore POINT --in-place``: asking, doing and telling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drvm.cli.invocation import Invocation
from drvm.cli.views import short_time
from drvm.core.errors import UsageError
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.restore.rollback.plan import RollbackPlan
from drvm.restore.run import start_restored
from drvm.wiring.assembly import Wiring
from drvm.wiring.rollbacks import RolledBack, in_place, plan_in_place

_WITH_IT = frozenset({"to", "disk", "start", "dry_run", "as_of"})


@dataclass(frozen=True, slots=True)
class InPlace:
    """What was asked for. ``disks``: ``None`` for all."""

    disks: frozenset[str] | None
    safety: bool
    yes: bool
    start: bool
    dry_run: bool


def refuse_with_in_place(options: Mapping[str, object], *, safety: bool, yes: bool) -> None:
    """What is about another machine or other images says nothing about these."""
    given = sorted(name for name, value in options.items() if value and name not in _WITH_IT)
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{names} and --in-place exclude each other",
            hint="--in-place writes to the disks of the machine as it is",
        )
    if not safety and not (yes or options.get("dry_run")):
        raise UsageError(
            "--no-safety-point needs --yes", hint="what is there now will be lost for good"
        )
    if safety and options.get("as_of") and not options.get("dry_run"):
        raise UsageError(
            "no safety point can be taken with --as-of",
            hint="name the point by its id (drvm points --as-of TIME), or add --no-safety-point",
        )


def restore_in_place(
    invocation: Invocation,
    wiring: Wiring,
    manifest: Manifest,
    wish: InPlace,
) -> None:
    """Plan, show, ask, and do it."""
    plan = plan_in_place(wiring, manifest, wish.disks)
    for line in plan.warnings:
        invocation.warn(line)
    if wish.dry_run:
        _show(invocation, wiring, plan, safety=wish.safety)
        return
    names = ", ".join(image.disk.target for image in plan.images)
    invocation.confirm(
        f"turn {names} of {plan.vm_name} back to point {manifest.id} "
        f"of {short_time(manifest.created)} UTC?",
        yes=wish.yes,
    )
    with invocation.progress() as progress:
        done = in_place(wiring, plan, progress, invocation.trace, safety=wish.safety)
        if wish.start:
            progress.stage("starting the machine")
            domain, safety = wiring.local_host().domain(plan.vm_uuid), done.safety_point
            kept = f" (safety point {safety})" if safety is not None else ""
            start_restored(domain, f"{plan.vm_name} is turned back{kept}")
    for line in done.warnings:
        invocation.warn(line)
    _tell(invocation, plan, done)


def _show(invocation: Invocation, wiring: Wiring, plan: RollbackPlan, *, safety: bool) -> None:
    output, differing = invocation.output, {}
    with invocation.progress() as progress:
        for top in plan.tops:
            differing[top.disk.target] = wiring.restorer().compare(top, progress)
    takes_point = safety and plan.again is None
    if output.json:
        disks = [
            {
                "target": image.disk.target,
                "path": image.path,
                "format": image.format,
                "size_bytes": image.size_bytes,
                "differing_bytes": differing[image.disk.target],
            }
            for image in plan.images
        ]
        outside = plan.outside
        fields = {
            "point": plan.manifest.id,
            "vm": plan.vm_name,
            "vm_uuid": plan.vm_uuid,
            "disks": disks,
            "nvram": outside is not None and outside.nvram_path is not None,
            "tpm": outside is not None and bool(outside.tpm),
            "takes_safety_point": takes_point,
            "warnings": plan.warnings,
        }
        output.document({"plan": fields})
        return
    created = short_time(plan.manifest.created)
    output.line(f"{plan.vm_name}, back to point {plan.manifest.id} of {created} UTC:")
    for image in plan.images:
        target, size = image.disk.target, format_bytes(image.size_bytes)
        output.line(f"  {target}: {format_bytes(differing[target])} of {size} differ, {image.path}")
    for what in _outside_words(plan):
        output.line(f"  {what} differ")
    if plan.again is not None:
        output.line(f"  it is half turned back to point {plan.again.point_id} already")
    output.line(f"  {'a' if takes_point else 'no'} safety point is taken before")


def _outside_words(plan: RollbackPlan) -> list[str]:
    if plan.outside is None:
        return []
    nvram = ["its UEFI variables"] if plan.outside.nvram_path is not None else []
    return nvram + (["the files of its TPM's state"] if plan.outside.tpm else [])


def _tell(invocation: Invocation, plan: RollbackPlan, rolled: RolledBack) -> None:
    output, done = invocation.output, rolled.done
    if output.json:
        fields: dict[str, Any] = {
            "point": plan.manifest.id,
            "vm": plan.vm_name,
            "vm_uuid": plan.vm_uuid,
            "in_place": True,
            "safety_point": rolled.safety_point,
            "disks": done.disks,
            "kept_files": done.kept,
            "warnings": (*plan.warnings, *rolled.warnings),
        }
        output.document({"restored": fields})
        return
    output.line(f"{plan.vm_name} is turned back to point {plan.manifest.id}")
    for disk in done.disks:
        changed = format_bytes(disk.written_bytes + disk.zeroed_bytes)
        output.line(f"  {disk.target}: {changed} differed, {disk.path}")
    for path in done.kept:
        output.line(f"  kept: {path}")
    if rolled.safety_point is not None:
        output.line(
            f"  safety point {rolled.safety_point} (pinned): drvm restore {rolled.safety_point}"
            " --in-place brings back what was there"
        )
