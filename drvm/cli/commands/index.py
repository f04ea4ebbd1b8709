"""``drvm index rebuild``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.core.errors import DamageFound
from drvm.core.units import format_bytes


@click.group("index")
def command() -> None:
    """The local index, by which a backup knows what is stored already."""


@command.command("rebuild")
@click.option("--dry-run", is_flag=True, help="Say what would be read, and change nothing.")
@click.pass_obj
def rebuild(invocation: Invocation, dry_run: bool) -> None:
    """Make the local index anew, from the packs of the repository alone.

    Never needed for safety: an index that is lost, torn or of another repository is made anew by
    the next backup, and what an index does not know is only stored once more. It is a way to find
    packs whose tables are damaged, and to free a cache directory of what grew old. May be
    interrupted; the next backup goes on where it ended.

    \b
    Examples:
      drvm index rebuild --dry-run
      drvm index rebuild
    """
    with opened(invocation) as wiring:
        repository = wiring.repository()
        plan = repository.catalog.plan_rebuild()
        fields: dict[str, object] = {
            "packs": plan.packs,
            "tables_cached": plan.cached,
            "dry_run": dry_run,
        }
        text = f"{plan.packs} packs, the ids of {plan.cached} of them in the local cache"
        damaged: list[str] = []
        if not dry_run:
            with invocation.progress() as progress:
                rebuilt = repository.catalog.rebuild(progress)
            damaged = sorted(name.hex() for name in rebuilt.damaged)
            fields |= {
                "damaged": damaged,
                "hooks": rebuilt.size.hooks,
                "index_bytes": rebuilt.size.index_bytes,
                "id_cache_bytes": rebuilt.size.tables.size_bytes,
            }
            text = (
                f"indexed {plan.packs} packs: {rebuilt.size.hooks} hooks,"
                f" {format_bytes(rebuilt.size.index_bytes)}"
            )
    if invocation.output.json:
        invocation.output.document(fields)
    else:
        invocation.output.line(text)
    if damaged:
        raise DamageFound(
            f"{len(damaged)} packs have damaged tables: {', '.join(damaged[:3])}",
            hint="the next backup stores anew what it needs of them; --json lists all",
        )
