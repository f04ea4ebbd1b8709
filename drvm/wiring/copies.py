"""Copies into a second repository, for the command line and the daemon."""

from __future__ import annotations

from collections.abc import Sequence

from drvm.config.repositories import CopyConfig
from drvm.core.errors import DamageFound
from drvm.core.progress import Progress, Trace, no_trace
from drvm.repository.points import Listing, Point
from drvm.repository.select import select
from drvm.upkeep.copy import Copied, CopyPlan, plan_copy, run_copy
from drvm.wiring.assembly import Wiring


def plan_copy_of(
    wiring: Wiring, other: Wiring, wanted: Sequence[str] = (), copy: CopyConfig | None = None
) -> CopyPlan:
    """What is to be copied to ``other``: the points of VMs and the points that ``wanted`` names,
    else those of the VMs that ``copy`` covers, else all. Raises ``UnknownPoint``."""
    listing = wiring.repository().points()
    asked, named = _asked(listing, wanted)

    def chosen(point: Point) -> bool:
        if wanted:
            return point.id in asked
        return copy is None or copy.covers(point.manifest.vm)

    return plan_copy(wiring.repository(), other.repository(), listing, chosen, named)


def run_copy_of(
    wiring: Wiring, other: Wiring, plan: CopyPlan, progress: Progress, trace: Trace = no_trace
) -> Copied:
    return run_copy(
        wiring.repository(),
        other.repository(),
        plan,
        writer=wiring.writer,
        level=wiring.level,
        clock=wiring.clock,
        progress=progress,
        trace=trace,
    )


def damage_of(copied: Copied) -> DamageFound | None:
    """What to raise behind the result."""
    if not copied.failed:
        return None
    point, first = copied.failed[0]
    more = f", and {len(copied.failed) - 1} more points" if len(copied.failed) > 1 else ""
    return DamageFound(
        f"point {point.id} is damaged and was not copied{more}: {first.message}",
        hint="the others were copied; run this again when it is repaired",
    )


def _asked(listing: Listing, wanted: Sequence[str]) -> tuple[set[str], frozenset[str]]:
    """(ids of all points asked for, those of points that were named one by one)."""
    asked: set[str] = set()
    named: set[str] = set()
    for text in wanted:
        mine = [p.id for p in listing.points if text in (p.manifest.vm, p.manifest.vm_uuid)]
        if not mine:
            named.add(select(listing.points, text).id)
        asked.update(mine)
    return asked | named, frozenset(named)
