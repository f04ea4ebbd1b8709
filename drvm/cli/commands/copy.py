"""``drvm copy --to REPO [VM|POINT...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import ending, opened, opened_elsewhere
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.config.elsewhere import copy_named
from drvm.core.units import format_bytes
from drvm.repository.points import Point
from drvm.upkeep.copy import Copied, CopyPlan, PlannedPoint
from drvm.wiring.copies import damage_of, plan_copy_of, run_copy_of

_WORDS = {"copy": "copy", "there": "there already", "removed": "removed there"}


@click.command("copy")
@click.argument("wanted", nargs=-1, metavar="[VM|POINT]...")
@click.option(
    "--to",
    required=True,
    metavar="REPO",
    help="One of the config's copies by its name, or a URL: s3://bucket/prefix, file:///path.",
)
@click.option(
    "--to-password-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The passphrase of that repository; else as the config says, else drvm asks.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be copied; write nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    wanted: tuple[str, ...],
    to: str,
    to_password_file: Path | None,
    dry_run: bool,
) -> int:
    """Copy points to a second repository, under its own keys: all, or those of VMs and single ones.

    What comes of it is whole by itself: it restores with that repository's passphrase alone. Only
    what is new there is read and written; a copy that was ended goes on where it was. Points keep
    their ids and their pins; nothing is ever removed there, and what was removed there (drvm prune
    on that repository) is copied again only if POINT names it. Create it first: drvm init.

    \b
    Examples:
      drvm copy --to offsite --dry-run
      drvm copy --to s3://second-site/drvm --to-password-file /etc/drvm/second web1
      DRVM_REPOSITORY=s3://second-site/drvm drvm points
    """
    section = copy_named(invocation.settings(), to)
    with (
        opened(invocation) as wiring,
        opened_elsewhere(invocation, to, to_password_file) as other,
    ):
        plan = plan_copy_of(wiring, other, wanted, section)
        for problem in plan.problems:
            invocation.warn(problem)
        copied = Copied((), (), (), 0)
        if not dry_run:
            with invocation.progress() as progress:
                copied = run_copy_of(wiring, other, plan, progress, invocation.trace)
        code = max(ending(wiring), ending(other))
        location = other.repository().store.location
    _show(invocation, plan, copied, location, dry_run=dry_run)
    for point in copied.gone:
        invocation.warn(f"point {point.id} was removed meanwhile: it was not copied")
    if damage := damage_of(copied):
        raise damage
    return code


def _show(
    invocation: Invocation, plan: CopyPlan, copied: Copied, location: str, *, dry_run: bool
) -> None:
    output = invocation.output
    made = {point.id: point for point in copied.points}
    if output.json:
        points = [_fields(planned, made.get(planned.point.id)) for planned in plan.points]
        output.document({"to": location, "dry_run": dry_run, "points": points, "pins": copied.pins})
        return
    columns = [
        Column(""),
        Column("point"),
        Column("vm"),
        Column("created (UTC)"),
        Column("size", right=True),
        Column("new there", right=True),
    ]
    rows = [_row(planned, made.get(planned.point.id)) for planned in plan.points]
    if rows:
        output.table(columns, rows)
    word = "would be copied" if dry_run else "copied"
    count = len(plan.going) if dry_run else len(made)
    output.line(f"{count} of {len(plan.points)} points {word} to {location}")
    if copied.pins:
        output.line(f"{copied.pins} pins copied")


def _row(planned: PlannedPoint, made: Point | None) -> list[str]:
    manifest = planned.point.manifest
    return [
        "copied" if made is not None else _WORDS[planned.state],
        manifest.id,
        manifest.vm,
        short_time(manifest.created),
        format_bytes(sum(disk.size_bytes for disk in manifest.disks)),
        format_bytes(made.manifest.stored_bytes) if made is not None else "",
    ]


def _fields(planned: PlannedPoint, made: Point | None) -> dict[str, Any]:
    manifest = planned.point.manifest
    return {
        "id": manifest.id,
        "vm": manifest.vm,
        "vm_uuid": manifest.vm_uuid,
        "created": manifest.created,
        "host": manifest.host,
        "state": planned.state,
        "copied": made is not None,
        "stored_bytes": made.manifest.stored_bytes if made is not None else None,
    }
