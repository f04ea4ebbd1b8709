"""``drvm points [VM]``."""

from __future__ import annotations

import datetime as dt

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, opened, told
from drvm.cli.views import point_fields, show_points
from drvm.config.settings import Overrides
from drvm.core.errors import DamageFound, TamperingFound, UnknownVm
from drvm.store.first_versions import alarms_of
from drvm.wiring.upkeep import gone_points


@click.command("points")
@click.argument("vm", required=False)
@click.option("--gone", is_flag=True, help="Only of VMs that are on none of the hosts any more.")
@at_time
@click.pass_obj
def command(invocation: Invocation, vm: str | None, gone: bool, as_of: dt.datetime | None) -> None:
    """List the good recovery points, oldest first, of one VM (by name or UUID) or of all.

    Ends with 4 where something of the repository is damaged: the list then lacks those points.
    Likewise where somebody overwrote or deleted objects of a bucket that keeps versions: then
    points are listed as they were.

    \b
    Examples:
      drvm points
      drvm points --gone
      drvm points web1 --as-of 2026-11-23T04:00
      drvm points web1 --json | jq -r '.points[-1].id'
    """
    with opened(invocation, Overrides(as_of=as_of)) as wiring:
        listing = wiring.repository().points()
        points = told(invocation, listing)
        if gone:
            points = gone_points(wiring, points)
        repository = wiring.repository()
        pins = repository.pins()
        foreign = frozenset(p.id for p in points if not repository.is_own(p.manifest))
        alarms = alarms_of(wiring.repository().store)
    manifests = [
        point.manifest
        for point in points
        if vm is None or vm in (point.manifest.vm, point.manifest.vm_uuid)
    ]
    if vm is not None and not manifests:
        known = sorted({point.manifest.vm for point in points})
        raise UnknownVm(
            f"there is no point of a VM {vm!r}",
            hint=f"there are points of {', '.join(known[:10])}" if known else "drvm backup VM",
        )
    if invocation.output.json:
        fields = [
            point_fields(manifest, pins.get(manifest.id, ()), manifest.id not in foreign)
            for manifest in manifests
        ]
        invocation.output.document({"points": fields})
    elif manifests:
        show_points(invocation.output, manifests, pins, foreign)
    elif gone:
        invocation.output.line("every VM that has points is still on one of the hosts")
    else:
        invocation.output.line("no points yet: drvm backup VM takes one")
    if alarms:
        raise TamperingFound("somebody overwrote or deleted objects of the repository")
    if listing.problems:
        raise DamageFound(
            f"{len(listing.problems)} objects of the repository are damaged or lost",
            hint="the points that are listed are good; the warnings name what is not",
        )
