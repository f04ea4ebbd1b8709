"""``drvm unpin POINT``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import chosen_point, opened
from drvm.core.errors import UsageError
from drvm.core.ids import is_point_id


@click.command("unpin")
@click.argument("point")
@click.pass_obj
def command(invocation: Invocation, point: str) -> None:
    """Take all pins off a point: from then on the rules decide about it.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id.

    \b
    Examples:
      drvm unpin 3f9a
    """
    with opened(invocation) as wiring:
        # a whole id also names a point that is damaged or gone, whose pins are left
        chosen = point if is_point_id(point) else chosen_point(invocation, wiring, point).id
        count = wiring.repository().unpin(chosen, invocation.trace)
    if not count:
        raise UsageError(f"point {chosen} is not pinned", hint="drvm points shows which are")
    if invocation.output.json:
        invocation.output.document({"unpinned": {"point": chosen, "pins": count}})
    invocation.output.line(f"unpinned point {chosen}")
