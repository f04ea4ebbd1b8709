"""``drvm clone POINT NEWNAME``."""

from __future__ import annotations

from typing import Any

import click

from drvm.cli.commands.restore import collect, make_request, restore_machine, target_options
from drvm.cli.invocation import Invocation
from drvm.cli.opening import chosen_point, ending, opened
from drvm.config.settings import Overrides


@click.command("clone")
@click.argument("point")
@click.argument("newname")
@click.option("--yes", is_flag=True, help="Don't ask before a device is overwritten.")
@target_options
@click.pass_obj
def command(invocation: Invocation, /, point: str, newname: str, yes: bool, **options: Any) -> int:
    """Restore a machine beside the original, under a new identity.

    Name, UUID, MACs and disk files are new; no image of the clone points at the original's.

    \b
    Examples:
      drvm clone web1 web1-test --start
      drvm clone web1 web1-b --sysprep --start
      drvm clone web1@2026-11-23T04:00 forensics --map-network lan=isolated
    """
    target = collect(options)
    with opened(invocation, Overrides(host_uri=target.to, as_of=target.as_of)) as wiring:
        manifest = chosen_point(invocation, wiring, point).manifest
        request = make_request(target, "clone", newname)
        restore_machine(invocation, wiring, manifest, request, target, yes=yes)
        return ending(wiring)
