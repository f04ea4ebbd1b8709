"""``drvm demo``."""

from __future__ import annotations

from pathlib import Path

import click

from drvm.cli.invocation import Invocation
from drvm.core.errors import UsageError
from drvm.lab import demo


@click.command("demo")
@click.option(
    "--report-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("artefacts"),
    show_default=True,
    help="Where the drill report is left.",
)
@click.pass_obj
def command(invocation: Invocation, report_dir: Path) -> None:
    """Back up, lose, restore, clone and drill a real small VM against a real S3 server.

    Needs root, libvirt and QEMU on this machine; from a checkout, ./bootstrap demo installs them.
    Everything it makes is removed at the end, but for the report.

    \b
    Example:
      ./bootstrap demo
    """
    if invocation.output.json:
        raise UsageError("the demo is for people: it has no --json", hint="leave --json out")
    demo.run(invocation.processes, invocation.clock, report_dir.absolute())
