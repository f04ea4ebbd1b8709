"""What ``drvm gc`` says of itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from drvm.cli.invocation import Invocation
from drvm.cli.output import Column
from drvm.core.clock import rfc3339
from drvm.core.units import format_bytes
from drvm.repository.generations import Generation
from drvm.upkeep.gc import Collected, Doomed, GcPlan
from drvm.upkeep.retire import Retired, RetirePlan


@dataclass(frozen=True, slots=True)
class Shown:
    """``ended``: ids of damaged points."""

    plan: GcPlan
    done: Collected
    retire: RetirePlan
    retired: Retired
    ended: tuple[str, ...]
    dry_run: bool


def show(invocation: Invocation, shown: Shown) -> None:
    plan, done = shown.plan, shown.done
    for damaged in plan.damaged:
        kind = "point" if damaged.good else "unfinished point"
        words = "; ".join(damaged.reasons)
        invocation.warn(f"{kind} {damaged.generation.point_id}: {words}")
    if shown.retired.failed:
        invocation.warn(f"{shown.retired.failed} points could not be written anew: drvm check")
    output = invocation.output
    if output.json:
        output.document(_fields(shown))
        return
    for point_id in shown.ended:
        output.line(f"{'would be ended' if shown.dry_run else 'ended'}: point {point_id}")
    if plan.refused:
        return
    if shown.dry_run:
        columns = [Column(""), Column("object"), Column("size", right=True)]
        output.table([*columns, Column("why", wraps=True)], _rows(shown))
    kept = format_bytes(plan.needed_bytes)
    output.line(f"{plan.points} points need {kept} of {format_bytes(plan.packs_bytes)} in packs")
    would = "would be " if shown.dry_run else ""
    deleted = len(plan.delete) if shown.dry_run else done.deleted
    deleted_bytes = _bytes(plan.delete) if shown.dry_run else done.deleted_bytes
    condemned = len(plan.condemn) if shown.dry_run else done.condemned
    output.line(
        f"{deleted} packs {would}deleted ({format_bytes(deleted_bytes)}),"
        f" {condemned} {would}condemned ({format_bytes(_bytes(plan.condemn))}),"
        f" {len(plan.waiting)} too young{f', {done.locked} locked' if done.locked else ''}"
    )
    if shown.retire.groups:
        points = len(shown.retire.points) if shown.dry_run else shown.retired.rewritten
        output.line(
            f"{len(shown.retire.packs)} packs {would}retired, {points} points {would}written anew"
        )


def _bytes(packs: tuple[Doomed, ...]) -> int:
    return sum(doomed.size_bytes for doomed in packs)


def _rows(shown: Shown) -> list[list[str]]:
    plan, rows = shown.plan, []
    for verb, packs, why in (
        ("delete", plan.delete, "condemned, and no point needs it"),
        ("condemn", plan.condemn, "no point needs it"),
        ("wait", plan.waiting, "no point needs it; too young"),
    ):
        for doomed in packs:
            size = format_bytes(doomed.size_bytes)
            rows.append([verb, f"pack {doomed.name.hex()}", size, why])
    for group in shown.retire.groups:
        rows += [["retire", f"pack {name.hex()}", "", group.why] for name in group.packs]
    for verb, attempts, why in (
        ("rewrite", shown.retire.points, "needs packs that are retired"),
        ("give up", plan.give_up, "its writer died"),
        ("clear", plan.clear, "was given up"),
    ):
        rows += [[verb, f"point {a.point_id}.{a.generation}", "", why] for a in attempts]
    return rows


def _fields(shown: Shown) -> dict[str, Any]:
    def packs(doomed: tuple[Doomed, ...]) -> list[dict[str, Any]]:
        return [{"pack": one.name.hex(), "size_bytes": one.size_bytes} for one in doomed]

    plan = shown.plan
    return {
        "dry_run": shown.dry_run,
        "packs": plan.packs,
        "packs_bytes": plan.packs_bytes,
        "needed_bytes": plan.needed_bytes,
        "points": plan.points,
        "condemn": packs(plan.condemn),
        "delete": packs(plan.delete),
        "waiting": packs(plan.waiting),
        "give_up": [_attempt(attempt) for attempt in plan.give_up],
        "clear": [_attempt(attempt) for attempt in plan.clear],
        "damaged": [
            {**_attempt(one.generation), "good": one.good, "reasons": one.reasons}
            for one in plan.damaged
        ],
        "retire": [
            {
                "packs": [name.hex() for name in group.packs],
                "write_bytes": group.write_bytes,
                "why": group.why,
            }
            for group in shown.retire.groups
        ],
        "rewrite": [_attempt(attempt) for attempt in shown.retire.points],
        "clock": plan.clock,
        "ended": list(shown.ended),
        "done": {
            **dataclasses.asdict(shown.done),
            "retired": dataclasses.asdict(shown.retired),
        },
    }


def _attempt(attempt: Generation) -> dict[str, Any]:
    return {
        "id": attempt.point_id,
        "generation": attempt.generation,
        "vm_uuid": attempt.vm_uuid,
        "stored": rfc3339(attempt.stored),
    }
