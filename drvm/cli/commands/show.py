"""``drvm show POINT``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.cli.output import Column, Output
from drvm.cli.views import pin_text, point_fields, short_time
from drvm.config.settings import Overrides
from drvm.core.units import format_bytes, format_seconds
from drvm.repository.manifest import Manifest
from drvm.repository.pins import Pin
from drvm.restore.machine.difference import redacted
from drvm.restore.plan import read_definition


@click.command("show")
@click.argument("point")
@click.option("--xml", is_flag=True, help="Print the domain XML too, its secrets hidden.")
@at_time
@click.pass_obj
def command(invocation: Invocation, point: str, xml: bool, as_of: dt.datetime | None) -> int:
    """Show one recovery point: POINT is VM, VM@latest, VM@TIME or the beginning of an id.

    \b
    Examples:
      drvm show web1
      drvm show web1@2026-11-23T04:00 --xml
    """
    with opened(invocation, Overrides(as_of=as_of)) as wiring:
        manifest = chosen_point(invocation, wiring, point).manifest
        pins = wiring.repository().pins().get(manifest.id, ())
        text = redacted(read_definition(wiring.repository(), manifest)) if xml else None
        code = ending(wiring)
        own = wiring.repository().is_own(manifest)
    if invocation.output.json:
        extra = {"definition_xml": text} if text is not None else {}
        invocation.output.document({"points": [{**point_fields(manifest, pins, own), **extra}]})
        return code
    _show(invocation.output, manifest, pins, own)
    if text is not None:
        invocation.output.block(f"\n{text}")
    return code


def _show(output: Output, manifest: Manifest, pins: Sequence[Pin], own: bool) -> None:
    lines = {
        "point": manifest.id,
        "vm": f"{manifest.vm} ({manifest.vm_uuid})",
        "created": f"{short_time(manifest.created)} UTC",
        "consistency": manifest.consistency,
        "engine": manifest.engine,
        "frozen": format_seconds(manifest.frozen_seconds) if manifest.frozen_seconds else "",
        "written by": f"{manifest.host}, drvm {manifest.drvm_version}"
        + ("" if own else " (foreign: not proven by this host's key)"),
        "copied from": _origin(manifest),
        "parent": manifest.parent or "",
        "group": manifest.group or "",
        "pinned": pin_text(pins),
        "stored": format_bytes(manifest.stored_bytes),
        "nvram": "yes" if manifest.nvram is not None else "",
        "tpm": "yes" if manifest.tpm else "",
        **{f"guest {name}": value for name, value in sorted(manifest.guest.items())},
    }
    lines.update({f"warning {number}": w for number, w in enumerate(manifest.warnings, 1)})
    shown = {name: value for name, value in lines.items() if value}
    width = max(map(len, shown)) + 1
    for name, value in shown.items():
        output.line(f"{name + ':':<{width}} {value}")
    output.line()
    columns = [
        Column("disk"),
        Column("size", right=True),
        Column("format"),
        Column("read", right=True),
        Column("new", right=True),
        Column("stored", right=True),
        Column("changes found by"),
    ]
    output.table(
        columns,
        [
            [
                disk.target,
                format_bytes(disk.size_bytes),
                disk.format,
                format_bytes(disk.read_bytes),
                format_bytes(disk.new_bytes),
                format_bytes(disk.stored_bytes),
                disk.method,
            ]
            for disk in manifest.streams
        ],
    )


def _origin(manifest: Manifest) -> str:
    origin = manifest.copied_from
    if origin is None:
        return ""
    return f"repository {origin.repository[:8]}, by {origin.host}, {short_time(origin.at)} UTC"
