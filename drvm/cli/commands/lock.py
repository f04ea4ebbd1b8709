"""``drvm lock``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.cli.views import short_time
from drvm.core.clock import rfc3339
from drvm.wiring.upkeep import lengthen_locks


@click.command("lock")
@click.option("--dry-run", is_flag=True, help="Say how many locks end soon; lengthen none.")
@click.pass_obj
def command(invocation: Invocation, dry_run: bool) -> None:
    """Lengthen the Object Locks of all that staying points need, where they end soon.

    repository.object_lock says for how long: what is locked for less than half of that is locked
    anew. Points that the rules of the policies no longer keep are let go. drvm daemon does this
    once a day; without it, run it at least every quarter of that time.

    \b
    Examples:
      drvm lock --dry-run
      drvm lock
    """
    with opened(invocation) as wiring, invocation.progress() as progress:
        plan, lengthened = lengthen_locks(wiring, progress, invocation.trace, dry_run=dry_run)
    if invocation.output.json:
        invocation.output.document(
            {
                "dry_run": dry_run,
                "points": plan.points,
                "objects": plan.objects,
                "ending": len(plan.ending),
                "lengthened": lengthened,
                "until": rfc3339(plan.until),
                "absent": plan.absent,
                "unread": plan.unread,
            }
        )
    else:
        count = len(plan.ending) if dry_run else lengthened
        word = "would be locked" if dry_run else "locked"
        until = short_time(rfc3339(plan.until))
        invocation.output.line(
            f"{count} of {plan.objects} objects that {plan.points} points need {word} until "
            f"{until} UTC"
        )
    for name in plan.absent[:10]:
        invocation.warn(f"{name} is not there")
    if plan.damage is not None:
        raise plan.damage
