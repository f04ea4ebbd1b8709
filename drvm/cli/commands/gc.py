"""``drvm gc``."""

from __future__ import annotations

from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened, warn
from drvm.cli.output import Column
from drvm.core.clock import rfc3339
from drvm.core.units import format_bytes
from drvm.repository.generations import Generation
from drvm.upkeep.gc import Collected, Doomed, GcPlan, forget_damaged, refusal, run_gc
from drvm.upkeep.survey import Damaged
from drvm.wiring.upkeep import gc_rules_of, plan_gc_of


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and why; change nothing.")
@click.option(
    "--forget-damaged",
    "forgotten",
    multiple=True,
    metavar="POINT",
    help="End this point for ever, which gc refuses to collect beside; repeatable.",
)
@click.pass_obj
def command(invocation: Invocation, dry_run: bool, forgotten: tuple[str, ...]) -> None:
    """Free the space of what no point needs any more.

    What "drvm prune" and "drvm forget" removed leaves packs behind, and so do backups that died.
    One run condemns them, a later one deletes them, so it belongs into a daily schedule. Backups,
    restores and other collectors may run meanwhile, here and on other hosts. Nothing is collected
    while a point is damaged so that it is not known what it needs, or needs what is not there.

    \b
    Examples:
      drvm gc --dry-run
      drvm prune && drvm gc
    """
    with opened(invocation) as wiring:
        repository = wiring.repository()
        rules, done = gc_rules_of(wiring), Collected()
        ended: tuple[str, ...] = ()
        with invocation.progress() as progress:

            def look() -> GcPlan:
                trace = invocation.trace
                return plan_gc_of(wiring, rules, write=not dry_run, trace=trace, progress=progress)

            plan = look()
            if forgotten:
                ended = forget_damaged(
                    repository, plan, forgotten, invocation.trace, dry_run=dry_run
                )
                plan = plan if dry_run else look()
            try:
                if not dry_run and not plan.refused:
                    run_gc(repository, plan, done, invocation.trace, progress)
            finally:
                _show(invocation, plan, done, ended, dry_run=dry_run)
    if plan.refused:
        raise refusal(plan)


def _show(
    invocation: Invocation, plan: GcPlan, done: Collected, ended: tuple[str, ...], *, dry_run: bool
) -> None:
    for damaged in plan.damaged:
        words = "; ".join(damaged.reasons)
        kind = "point" if damaged.good else "unfinished point"
        warn(invocation, f"{kind} {damaged.generation.point_id}: {words}")
    output = invocation.output
    if output.json:
        output.document(_fields(plan, done, ended, dry_run=dry_run))
        return
    for point_id in ended:
        output.line(f"{'would be ended' if dry_run else 'ended'}: point {point_id}")
    if plan.refused:
        return
    if dry_run:
        rows = [*_rows("delete", plan.delete, "condemned, and no point needs it")]
        rows += _rows("condemn", plan.condemn, "no point needs it")
        rows += _rows("wait", plan.waiting, "no point needs it; too young")
        rows += _attempts("give up", plan.give_up, "its writer died")
        rows += _attempts("clear", plan.clear, "was given up")
        columns = [Column(""), Column("object"), Column("size", right=True)]
        output.table([*columns, Column("why", wraps=True)], rows)
    kept = format_bytes(plan.needed_bytes)
    output.line(f"{plan.points} points need {kept} of {format_bytes(plan.packs_bytes)} in packs")
    deleted = (
        (len(plan.delete), _bytes(plan.delete)) if dry_run else (done.deleted, done.deleted_bytes)
    )
    condemned = len(plan.condemn) if dry_run else done.condemned
    would = "would be " if dry_run else ""
    output.line(
        f"{deleted[0]} packs {would}deleted ({format_bytes(deleted[1])}),"
        f" {condemned} {would}condemned ({format_bytes(_bytes(plan.condemn))}),"
        f" {len(plan.waiting)} too young{f', {done.locked} locked' if done.locked else ''}"
    )


def _bytes(packs: tuple[Doomed, ...]) -> int:
    return sum(doomed.size_bytes for doomed in packs)


def _rows(verb: str, packs: tuple[Doomed, ...], why: str) -> list[list[str]]:
    return [
        [verb, f"pack {doomed.name.hex()}", format_bytes(doomed.size_bytes), why]
        for doomed in packs
    ]


def _attempts(verb: str, attempts: tuple[Generation, ...], why: str) -> list[list[str]]:
    return [
        [verb, f"point {attempt.point_id}.{attempt.generation}", "", why] for attempt in attempts
    ]


def _fields(
    plan: GcPlan, done: Collected, ended: tuple[str, ...], *, dry_run: bool
) -> dict[str, Any]:
    def packs(doomed: tuple[Doomed, ...]) -> list[dict[str, Any]]:
        return [{"pack": one.name.hex(), "size_bytes": one.size_bytes} for one in doomed]

    return {
        "dry_run": dry_run,
        "packs": plan.packs,
        "packs_bytes": plan.packs_bytes,
        "needed_bytes": plan.needed_bytes,
        "points": plan.points,
        "condemn": packs(plan.condemn),
        "delete": packs(plan.delete),
        "waiting": packs(plan.waiting),
        "give_up": [_attempt(attempt) for attempt in plan.give_up],
        "clear": [_attempt(attempt) for attempt in plan.clear],
        "damaged": [_damage(damaged) for damaged in plan.damaged],
        "clock": plan.clock,
        "ended": list(ended),
        "done": {
            "condemned": done.condemned,
            "deleted": done.deleted,
            "deleted_bytes": done.deleted_bytes,
            "locked": done.locked,
            "given_up": done.given_up,
            "cleared": done.cleared,
            "index_objects": done.index_objects,
            "probes": done.probes,
        },
    }


def _attempt(attempt: Generation) -> dict[str, Any]:
    return {
        "id": attempt.point_id,
        "generation": attempt.generation,
        "vm_uuid": attempt.vm_uuid,
        "stored": rfc3339(attempt.stored),
    }


def _damage(damaged: Damaged) -> dict[str, Any]:
    return {**_attempt(damaged.generation), "good": damaged.good, "reasons": damaged.reasons}
