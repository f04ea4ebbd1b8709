"""``drvm export POINT``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.config.settings import Overrides
from drvm.core.units import format_bytes
from drvm.restore.export.plan import FORMATS, ExportFormat, ExportPlan, plan_export
from drvm.restore.export.run import Exported


@click.command("export")
@click.argument("point")
@click.option(
    "--format", "image_format", type=click.Choice(FORMATS), required=True, help="Of the images."
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder for the files.",
)
@click.option(
    "--disk", multiple=True, metavar="TARGET", help="Only this one, such as vda; repeatable."
)
@click.option("--no-verify", is_flag=True, help="Don't read the images back.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@at_time
@click.pass_obj
def command(
    invocation: Invocation,
    point: str,
    image_format: ExportFormat,
    output: Path,
    disk: tuple[str, ...],
    no_verify: bool,
    dry_run: bool,
    as_of: dt.datetime | None,
) -> int:
    """Write the disks of a recovery point for another hypervisor.

    vmdk is for VMware, and stream-optimised, as its imports want it; vdi for VirtualBox, vhdx for
    Hyper-V, raw and qcow2 for anything else. With the first three the machine is described by an
    OVF, which VMware and VirtualBox import, and a README says what is not carried over. ova is
    the OVF with its vmdks in one file.

    Each image is read back and compared with the point, block by block, before it gets its name.
    No existing file is ever overwritten.

    \b
    Examples:
      drvm export web1 --format vmdk --output /srv/out
      drvm export web1@2026-11-23T04:00 --format vhdx --disk vda --output /srv/out
    """
    with opened(invocation, Overrides(as_of=as_of)) as wiring:
        manifest = chosen_point(invocation, wiring, point).manifest
        plan = plan_export(
            wiring.repository(), manifest, output.absolute(), image_format, frozenset(disk) or None
        )
        if dry_run:
            _show(invocation, plan)
            return ending(wiring)
        if plan.free_bytes < plan.need_bytes:
            invocation.warn(
                f"{plan.directory} has {format_bytes(plan.free_bytes)} left and the export may "
                f"take {format_bytes(plan.need_bytes)}"
            )
        with invocation.progress() as progress:
            exporter = wiring.exporter(invocation.trace)
            exported = exporter.run(plan, progress, verify=not no_verify)
        _tell(invocation, plan, exported, verified=not no_verify)
        return ending(wiring)


def _show(invocation: Invocation, plan: ExportPlan) -> None:
    if invocation.output.json:
        disks = [
            {
                "target": disk.image.disk.target,
                "path": plan.ova if plan.in_archive else disk.path,
                "format": disk.format,
                "size_bytes": disk.image.size_bytes,
            }
            for disk in plan.disks
        ]
        fields = {
            "point": plan.manifest.id,
            "images": disks,
            "files": plan.files,
            "notes": _notes(plan),
            "need_bytes": plan.need_bytes,
            "free_bytes": plan.free_bytes,
        }
        invocation.output.document({"plan": fields})
        return
    output = invocation.output
    output.line(f"{plan.manifest.vm}, point {plan.manifest.id}, to {plan.directory}:")
    for disk in plan.disks:
        size = format_bytes(disk.image.size_bytes)
        where = "" if plan.in_archive else f" -> {disk.path}"
        output.line(f"  {disk.image.disk.target}: {size} {disk.format}{where}")
    for path in plan.files if plan.in_archive else plan.files[len(plan.disks) :]:
        output.line(f"  {path}")
    for note in _notes(plan):
        output.line(f"  note: {note}")
    need, left = format_bytes(plan.need_bytes), format_bytes(plan.free_bytes)
    output.line(f"  needs up to {need}, and {left} is left")


def _tell(invocation: Invocation, plan: ExportPlan, exported: Exported, *, verified: bool) -> None:
    if invocation.output.json:
        fields = {
            "point": plan.manifest.id,
            "files": exported.files,
            "written_bytes": exported.written_bytes,
            "verified": verified,
            "notes": _notes(plan),
        }
        invocation.output.document({"exported": fields})
        return
    size = format_bytes(exported.written_bytes)
    how = "read back and compared" if verified else "not read back"
    invocation.output.line(
        f"exported point {plan.manifest.id} of {plan.manifest.vm}: {size} written, {how}"
    )
    for path in exported.files:
        invocation.output.line(f"  {path}")
    for note in _notes(plan):
        invocation.output.line(f"  note: {note}")


def _notes(plan: ExportPlan) -> tuple[str, ...]:
    return () if plan.machine is None else plan.machine.notes
