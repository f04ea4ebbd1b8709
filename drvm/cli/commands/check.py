"""``drvm check``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import opened, opened_elsewhere
from drvm.cli.output import Output
from drvm.cli.views import short_time
from drvm.core.clock import rfc3339
from drvm.core.errors import DamageFound, UsageError
from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.repository.checks import Share, parse_share
from drvm.repository.repository import Repository
from drvm.upkeep.check import (
    CheckResult,
    plan_check_without_key,
    run_check_without_key,
)
from drvm.upkeep.check_points import DiskHit, PointHit
from drvm.upkeep.repair import Repairs
from drvm.wiring.assembly import Wiring
from drvm.wiring.upkeep import check_of, repair_hits

_ALL = "1/1"
_RANGES_SHOWN = 8
_LINES_SHOWN = 20


@click.command("check")
@click.option(
    "--read-data",
    is_flag=False,
    flag_value=_ALL,
    metavar="[SHARE]",
    help="Read the data too: all of it, a share such as 10%, or 3/7, the third of seven parts.",
)
@click.option(
    "--without-key",
    is_flag=True,
    help="Compare packs with their own checksums, without a passphrase. Reads all, or the SHARE.",
)
@click.option(
    "--repair", is_flag=True, help="Write damaged points again from where their blocks still are."
)
@click.option(
    "--from",
    "source",
    metavar="REPO",
    help="Where copies of the points are: one of the config's copies by its name, or a URL.",
)
@click.option(
    "--from-password-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The passphrase of that repository; else as the config says, else drvm asks.",
)
@click.option("--dry-run", is_flag=True, help="Look only: set nothing aside, keep no record.")
@click.pass_obj
def command(
    invocation: Invocation,
    read_data: str | None,
    without_key: bool,
    repair: bool,
    source: str | None,
    from_password_file: Path | None,
    dry_run: bool,
) -> int:
    """Is everything there that the points need, and is it what was written?

    Without options all manifests and disk maps are read, and every pack that a point needs must be
    there. With --read-data packs are read, decrypted and named anew, and disk maps are compared
    with what they stand for. A share such as 10% goes on where the last one ended, on whatever host
    that was: ten runs read every byte.

    Damage is told as what it costs: points, disks, and ranges of bytes of the disk (not yet files
    of the guest). A bad pack is read once more, and then set aside: no backup relies on it again,
    and the next one of each machine stores anew what it needs of it. No point is ever removed.

    --repair writes points that are hit again under their ids: with blocks that later backups have
    stored anew, and with those of their copies in a second repository. What can't be repaired is
    named, and stays as it is.

    Exit code 4 where points or packs are damaged, 3 where only lesser objects are, or where all
    points that were hit could be repaired.

    \b
    Examples:
      drvm check
      drvm check --read-data 10%
      drvm check --read-data --json | jq -r '.points_hit[].id'
      drvm check --repair --from offsite
    """
    if repair and (dry_run or without_key):
        raise UsageError(
            "--repair excludes --dry-run and --without-key",
            hint="drvm check --dry-run says what is damaged",
        )
    if not repair and (source is not None or from_password_file is not None):
        raise UsageError("--from is where --repair reads: it needs that", hint="add --repair")
    share = parse_share(read_data) if read_data is not None else None
    repairs: Repairs | None = None
    with opened(invocation) as wiring, contextlib.ExitStack() as stack:
        other: Repository | None = None
        if source is not None:
            elsewhere = opened_elsewhere(invocation, source, from_password_file)
            other = stack.enter_context(elsewhere).repository()
        result = _run(invocation, wiring, share, without_key=without_key, dry_run=dry_run)
        if repair:
            with invocation.progress() as progress:
                repairs = repair_hits(wiring, result, other, progress, invocation.trace)
    if invocation.output.json:
        invocation.output.document(_fields(result, repairs, dry_run=dry_run))
    else:
        show(invocation.output, result, repairs)
    _warn(invocation, result, repairs)
    if result.damaged and (repairs is None or not _healed(result, repairs)):
        raise DamageFound(_verdict(result, repairs), hint=_hint(result, repairs, dry_run=dry_run))
    return DONE_WITH_WARNINGS if result.warned or result.damaged else DONE


def _healed(result: CheckResult, repairs: Repairs) -> bool:
    """Bad packs that no point needs any more do no harm."""
    return not repairs.failed and bool(result.hits)


def _run(
    invocation: Invocation,
    wiring: Wiring,
    share: Share | None,
    *,
    without_key: bool,
    dry_run: bool,
) -> CheckResult:
    with invocation.progress() as progress:
        if without_key:
            store = wiring.store()
            progress.stage("listing the repository")
            plan = plan_check_without_key(store, share, wiring.clock.now())
            return run_check_without_key(
                store, plan, progress, set_aside=not dry_run, trace=invocation.trace
            )
        return check_of(wiring, share, progress, invocation.trace, write=not dry_run)


def show(output: Output, result: CheckResult, repairs: Repairs | None) -> None:
    points = "" if result.never_read is None else f"{result.points} points, "
    output.line(
        f"{points}{result.packs} packs ({format_bytes(result.packs_bytes)});"
        f" {result.read_packs} packs read ({format_bytes(result.read_bytes)})"
    )
    if result.oldest_read is not None:
        rest = "all other" if result.never_read else "all"
        since = short_time(rfc3339(result.oldest_read))
        output.line(f"{rest} packs were read back since {since} UTC")
    if result.never_read:
        output.line(f"{result.never_read} packs were never read back since they were written")
    for pack in result.bad_packs:
        fate = "set aside" if pack.set_aside else "not set aside" if not pack.absent else "absent"
        output.line(f"pack {pack.name.hex()}: {pack.reason} ({fate})")
    for line in _bounded(result.finds.damage):
        output.line(line)
    for hit in result.hits:
        _show_hit(output, hit)
    for point in repairs.points if repairs is not None else ():
        if point.generation:
            output.line(f"point {point.id} was repaired")
        else:
            output.line(f"point {point.id} can't be repaired: {point.reason}")


def _show_hit(output: Output, hit: PointHit) -> None:
    made = f", {short_time(hit.created)}" if hit.created else ""
    output.line(f"point {hit.id} of {hit.vm or hit.vm_uuid}{made}:")
    for part in hit.parts:
        output.line(f"  {part}: lost")
    for disk in hit.disks:
        named = [f"{start} to {start + length}" for start, length in disk.ranges[:_RANGES_SHOWN]]
        more = len(disk.ranges) - len(named) + disk.more_ranges
        rest = f" and {more} more ranges" if more else ""
        size = format_bytes(disk.lost_bytes)
        output.line(f"  {disk.target}: {size} lost, bytes {', '.join(named)}{rest}")


def _warn(invocation: Invocation, result: CheckResult, repairs: Repairs | None) -> None:
    if repairs is not None:
        left = [point.left for point in repairs.points if point.left]
        for line in _bounded([*left, *repairs.left]):
            invocation.warn(f"{line}: run this again later")
    for line in _bounded((*result.finds.harmless, *result.finds.unfinished)):
        invocation.warn(line)
    if result.passing:
        invocation.warn(
            f"{result.passing} packs were bad when they were read first, and good the second time:"
            " look at the network, the memory and the disks",
        )
    if result.not_set_aside:
        invocation.warn(f"bad packs could not be set aside: {result.not_set_aside}")
    if result.not_recorded:
        invocation.warn(f"it is not on record what was read: {result.not_recorded}")


def _bounded(lines: Sequence[str]) -> list[str]:
    shown = [printable(line, 300) for line in lines[:_LINES_SHOWN]]
    left = len(lines) - len(shown)
    return [*shown, f"and {left} more: --json lists all"] if left else shown


def _verdict(result: CheckResult, repairs: Repairs | None) -> str:
    if repairs is None or not result.hits:
        return result.verdict
    return f"{len(repairs.failed)} of {len(result.hits)} damaged points could not be repaired"


def _hint(result: CheckResult, repairs: Repairs | None, *, dry_run: bool) -> str:
    if repairs is not None and repairs.failed:
        return "back up each machine, and try again: drvm check --repair, with --from if you can"
    if any(pack.set_aside for pack in result.bad_packs):
        return "back up each machine again: drvm backup stores anew what it needs of bad packs"
    if result.bad_packs and dry_run:
        return "drvm check without --dry-run sets bad packs aside, and the next backups heal"
    return "the other points can still be restored; back up these machines again"


def _fields(result: CheckResult, repairs: Repairs | None, *, dry_run: bool) -> dict[str, Any]:
    repaired = None
    if repairs is not None:
        repaired = [
            {
                "id": point.id,
                "repaired": bool(point.generation),
                "reason": point.reason or None,
                "left": point.left or None,
            }
            for point in repairs.points
        ]
    return {
        "repairs": repaired,
        "dry_run": dry_run,
        "damaged": result.damaged,
        "points": result.points,
        "packs": result.packs,
        "packs_bytes": result.packs_bytes,
        "read_packs": result.read_packs,
        "read_bytes": result.read_bytes,
        "compared_leaves": result.leaves,
        "oldest_read": None if result.oldest_read is None else rfc3339(result.oldest_read),
        "never_read_packs": result.never_read,
        "passing_faults": result.passing,
        "points_hit": [_hit_fields(hit) for hit in result.hits],
        "bad_packs": [
            {
                "pack": pack.name.hex(),
                "reason": pack.reason,
                "absent": pack.absent,
                "set_aside": pack.set_aside,
            }
            for pack in result.bad_packs
        ],
        "other_damage": result.finds.damage,
        "harmless": result.finds.harmless,
        "unfinished": result.finds.unfinished,
        "not_set_aside": result.not_set_aside or None,
        "not_recorded": result.not_recorded or None,
    }


def _hit_fields(hit: PointHit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "vm": hit.vm or None,
        "vm_uuid": hit.vm_uuid,
        "created": hit.created or None,
        "lost_parts": hit.parts,
        "disks": [_disk_fields(disk) for disk in hit.disks],
    }


def _disk_fields(disk: DiskHit) -> dict[str, Any]:
    return {
        "target": disk.target,
        "size_bytes": disk.size_bytes,
        "lost_bytes": disk.lost_bytes,
        "ranges": [
            {"offset_bytes": offset, "length_bytes": length} for offset, length in disk.ranges
        ],
        "ranges_left_out": disk.more_ranges,
    }
