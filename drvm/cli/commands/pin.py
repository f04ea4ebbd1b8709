"""``drvm pin POINT``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import chosen_point, opened
from drvm.wiring.upkeep import pin_point


@click.command("pin")
@click.argument("point")
@click.option("--note", default="", metavar="TEXT", help="Why; drvm points shows it.")
@click.pass_obj
def command(invocation: Invocation, point: str, note: str) -> None:
    """Keep a point whatever the rules say, until it is unpinned.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. A point may
    have several pins, each with a note.

    \b
    Examples:
      drvm pin web1 --note "before the upgrade"
    """
    with opened(invocation) as wiring:
        chosen = chosen_point(invocation, wiring, point)
        pin = pin_point(wiring, chosen, note, invocation.trace)
    if invocation.output.json:
        invocation.output.document({"pinned": {"point": chosen.id, "note": pin.note}})
    invocation.output.line(f"pinned point {chosen.id} of {chosen.manifest.vm}")
