"""``drvm forget POINT...``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import good_points, opened
from drvm.cli.views import point_fields, show_points
from drvm.core.errors import UnknownVm, UsageError
from drvm.core.text import printable
from drvm.repository.points import Point
from drvm.repository.select import select
from drvm.upkeep.prune import run_prune


@click.command("forget")
@click.argument("points", nargs=-1, metavar="[POINT]...")
@click.option("--vm", "vms", multiple=True, metavar="VM", help="All points of this VM; repeatable.")
@click.option("--dry-run", is_flag=True, help="Say which points that are; remove nothing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def command(
    invocation: Invocation,
    points: tuple[str, ...],
    vms: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove points by hand, whatever the rules say: the last good one of a VM too.

    POINT is VM@TIME or the beginning of an id; a VM alone is not taken for its latest point. Pinned
    points have to be unpinned first. Removed points can't be restored any more. Their data stays in
    the repository until it is collected.

    \b
    Examples:
      drvm forget 3f9a 77c0
      drvm points --gone
      drvm forget --vm old-web1 --yes
    """
    with opened(invocation) as wiring:
        repository = wiring.repository()
        good = good_points(invocation, repository)
        chosen = _chosen(good, points, vms)
        pinned = [point.id for point in chosen if repository.is_pinned(point.id)]
        if pinned:
            raise UsageError(
                f"{len(pinned)} of these points are pinned: {', '.join(pinned[:10])}",
                hint="drvm unpin POINT first",
            )
        removed: tuple[Point, ...] = ()
        if not dry_run:
            if not yes:
                show_points(invocation.output, [point.manifest for point in chosen])
            invocation.confirm(_question(chosen, good), yes=yes)
            pruned = run_prune(repository, chosen, invocation.trace)
            removed = pruned.ended
            for point in pruned.spared:
                invocation.warn(f"point {point.id} was pinned meanwhile: it stays")
    told = chosen if dry_run else removed
    if invocation.output.json:
        fields = [point_fields(point.manifest) for point in told]
        invocation.output.document({"dry_run": dry_run, "points": fields})
    for point in told:
        word = "would be forgotten" if dry_run else "forgotten"
        invocation.output.line(f"{word}: point {point.id} of {point.manifest.vm}")


def _chosen(
    good: Sequence[Point], points: tuple[str, ...], vms: tuple[str, ...]
) -> tuple[Point, ...]:
    """Those that are named, then those of the VMs; each once."""
    if not points and not vms:
        raise UsageError("which points?", hint="drvm forget POINT..., or --vm VM; drvm points")
    chosen: dict[str, Point] = {}
    for text in points:
        if text.endswith("@latest") or any(
            text in (point.manifest.vm, point.manifest.vm_uuid) for point in good
        ):
            raise UsageError(
                f"{printable(text, 80)!r} names a VM, not a point",
                hint="name a point by its id, or all points of the VM by --vm; drvm points",
            )
        point = select(good, text)
        chosen[point.id] = point
    for vm in vms:
        mine = [p for p in good if vm in (p.manifest.vm, p.manifest.vm_uuid)]
        if not mine:
            raise UnknownVm(f"there is no point of a VM {printable(vm, 80)!r}", hint="drvm points")
        chosen.update({point.id: point for point in mine})
    return tuple(chosen.values())


def _question(chosen: Sequence[Point], good: Sequence[Point]) -> str:
    """Says of which VMs nothing would be left."""
    ids = {point.id for point in chosen}
    left = {point.manifest.vm_uuid for point in good if point.id not in ids}
    names = sorted({p.manifest.vm for p in chosen if p.manifest.vm_uuid not in left})
    shown = ", ".join(printable(name, 80) for name in names)
    last = f" (nothing would be left of {shown})" if names else ""
    return f"forget {len(chosen)} points for ever{last}?"
