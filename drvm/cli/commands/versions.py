"""``drvm versions``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.clock import rfc3339
from drvm.core.errors import StoreRefused, TamperingFound
from drvm.wiring.upkeep import later_versions


@click.command("versions")
@click.option("--undo", is_flag=True, help="Delete the later versions for ever; the first stay.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def command(invocation: Invocation, undo: bool, yes: bool) -> None:
    """List what somebody overwrote or deleted in a bucket that keeps versions; with --undo, clear
    it away.

    Nothing of a repository is written twice, so only the first version of an object counts: points
    restore all the same, but nothing is removed while there are others. Ends with 4 where there
    are. Before --undo, take the stolen keys away; it needs those of the collector.

    \b
    Examples:
      drvm versions
      drvm versions --undo
    """
    with opened(invocation) as wiring:
        store, found = later_versions(wiring)
        rows = [
            [later.name, later.what, short_time(rfc3339(later.last)), str(len(later.versions))]
            for later in found
        ]
        if invocation.output.json:
            fields = [
                {"object": one.name, "what": one.what, "last": rfc3339(one.last)} for one in found
            ]
            invocation.output.document({"changed": fields})
        elif rows:
            columns = [Column("object"), Column("somebody"), Column("last (UTC)"), Column("times")]
            invocation.output.table(columns, rows)
        else:
            invocation.output.line("every object is as its writer left it")
        if not found:
            return
        if not undo:
            raise TamperingFound(f"somebody overwrote or deleted {len(found)} objects")
        invocation.confirm(f"delete the later versions of {len(found)} objects?", yes=yes)
        refused = [later.name for later in found if not store.undo(later)]
    if refused:
        raise StoreRefused(
            f"the later versions of {len(refused)} objects can't be deleted",
            hint="by the collector's keys, and when their locks have ended: docs/S3.md",
        )
