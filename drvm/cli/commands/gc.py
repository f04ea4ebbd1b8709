"""``drvm gc``."""

from __future__ import annotations

import click

from drvm.cli.gc_view import Shown, show
from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.core.errors import UsageError
from drvm.core.units import parse_bytes
from drvm.upkeep.gc import Collected, GcPlan, forget_damaged, refusal, run_gc
from drvm.upkeep.retire import Retired, RetirePlan, run_retire
from drvm.upkeep.survey import Survey
from drvm.wiring.upkeep import gc_rules_of, plan_gc_of, plan_retire_of


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and why; change nothing.")
@click.option(
    "--forget-damaged",
    "forgotten",
    multiple=True,
    metavar="POINT",
    help="End this point for ever, which gc refuses to collect beside; repeatable.",
)
@click.option(
    "--max-rewrite",
    metavar="SIZE",
    help="How much stored data may be written anew, such as 10GiB; 0B: none.",
)
@click.pass_obj
def command(
    invocation: Invocation, dry_run: bool, forgotten: tuple[str, ...], max_rewrite: str | None
) -> None:
    """Free the space of what no point needs any more.

    What "drvm prune" and "drvm forget" removed leaves packs behind, and so do backups that died.
    One run condemns them, a later one deletes them, so it belongs into a daily schedule. Points
    are written anew, under their ids, to free packs of which little is needed. Backups,
    restores and other collectors may run meanwhile, here and on other hosts. Nothing is collected
    while a point is damaged so that it is not known what it needs, or needs what is not there.

    \b
    Examples:
      drvm gc --dry-run
      drvm prune && drvm gc
    """
    with opened(invocation) as wiring:
        repository = wiring.repository()
        rules, done, retired = gc_rules_of(wiring), Collected(), Retired()
        most_bytes = _size(max_rewrite)
        ended: tuple[str, ...] = ()
        with invocation.progress() as progress:

            def look() -> tuple[Survey, GcPlan]:
                trace = invocation.trace
                return plan_gc_of(wiring, rules, write=not dry_run, trace=trace, progress=progress)

            found, plan = look()
            if forgotten:
                ended = forget_damaged(
                    repository, plan, forgotten, invocation.trace, dry_run=dry_run
                )
                found, plan = (found, plan) if dry_run else look()
            retire = RetirePlan()
            try:
                if not plan.refused:
                    if not dry_run:
                        run_gc(repository, plan, done, invocation.trace, progress)
                    retire = plan_retire_of(wiring, found, most_bytes, progress)
                    if not dry_run:
                        run_retire(
                            repository,
                            retire,
                            retired,
                            level=wiring.level,
                            trace=invocation.trace,
                            progress=progress,
                        )
            finally:
                show(invocation, Shown(plan, done, retire, retired, ended, dry_run))
    if plan.refused:
        raise refusal(plan)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--max-rewrite: {error}", hint="such as 10GiB") from None
