"""``drvm drill [POINT...]``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from drvm.cli.drill_view import Drilled, show_drills, show_plans
from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import check_place, chosen_point, good_points, opened, tell_foreign
from drvm.config.fields import host_uri_problem
from drvm.config.policies import PolicyConfig
from drvm.core.errors import (
    DrillFailed,
    DrvmError,
    HostError,
    Interrupted,
    ObjectDamaged,
    ObjectMissing,
    PreflightFailed,
    RepositoryError,
    RestoreError,
    UsageError,
)
from drvm.core.files import publish
from drvm.core.text import printable
from drvm.drill.group import Absent
from drvm.report.html import html_report
from drvm.repository.manifest import Manifest
from drvm.repository.points import Point
from drvm.wiring.assembly import Wiring
from drvm.wiring.drilling import Carried, carry_out_all
from drvm.wiring.drills import (
    DrillWish,
    Owed,
    Plan,
    members_by_policy,
    owed,
    plan_drill_of,
    plan_policy,
)
from drvm.wiring.reporting import gather_report, latest_runs

_MOST_AT_ONCE = 64
_OF_ONE = (RestoreError, HostError, RepositoryError, ObjectMissing, ObjectDamaged, UsageError)
"""What keeps one machine from being drilled, and hardly all of them: also a point of image files
alone, which is no machine."""


@click.command("drill")
@click.argument("points", nargs=-1, metavar="POINT...")
@click.option("--policy", metavar="NAME", help="All VMs of this policy: as a group, or each.")
@click.option("--due", is_flag=True, help="What the policies' schedules of drills owe.")
@click.option(
    "--method",
    type=click.Choice(["restore", "boot"]),
    help="restore: write the disks first; boot: run over the repository.",
)
@click.option("--to", "host_uri", metavar="URI", help="The libvirt host to drill on.")
@click.option(
    "--parallel",
    metavar="N",
    type=click.IntRange(1, _MOST_AT_ONCE),
    default=1,
    help="So many at once, as far as there is room.",
)
@click.option(
    "--virt-type",
    type=click.Choice(["kvm", "qemu"]),
    help="qemu: emulated, where there is no KVM.",
)
@click.option(
    "--report",
    "report_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the page of HTML goes.  [default: below state_dir]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; touch nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    points: tuple[str, ...],
    policy: str | None,
    due: bool,
    method: Literal["restore", "boot"] | None,
    host_uri: str | None,
    parallel: int,
    virt_type: Literal["kvm", "qemu"] | None,
    report_path: Path | None,
    dry_run: bool,
) -> int:
    """Prove that a point boots: restore it in isolation, boot it, check it, measure it.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. The machine
    runs in a network of its own without any way out, the original is never touched, and all of it
    is removed afterwards. The checks are those of the VM's policy. Machines of a policy with
    stages are drilled together, stage by stage. The result is kept in the repository. Ends with 4
    where a drill failed, with 3 where a machine of the policy has no good point.

    \b
    Examples:
      drvm drill web1
      drvm drill web1 --method boot
      drvm drill --policy nightly --json | jq '.drills[] | {vm, passed, rto_seconds}'
      drvm drill --due --parallel 2
    """
    if report_path is not None:
        check_place(report_path.absolute())
    if host_uri is not None and (problem := host_uri_problem(host_uri)):
        raise UsageError(f"--to {problem}")
    wish = DrillWish(method, host_uri, virt_type)
    with opened(invocation) as wiring:
        chosen = _chosen(invocation, wiring, points, policy, wish, due=due)
        if dry_run:
            if chosen.plans or not chosen.refused:
                show_plans(invocation.output, chosen.plans, chosen.absent)
            return _end(invocation, chosen, [])
        try:
            with invocation.progress() as progress:
                trace = invocation.trace
                done = carry_out_all(wiring, chosen.plans, progress, trace, parallel=parallel)
        except (KeyboardInterrupt, Interrupted) as error:
            words = "those that had ended are kept: drvm report; drvm doctor tells what is left"
            raise Interrupted(str(error) or "interrupted", hint=words) from None
        results = [result for one in done for result in one.results]
        report = None
        if results:
            path = (report_path or wiring.report_path(results[-1].id)).absolute()
            report = _written_report(invocation, wiring, path)
        if results or not (invocation.output.json if done else chosen.refused):
            _show(invocation, chosen, done, report)
    return _end(invocation, chosen, done)


@dataclass(frozen=True, slots=True)
class _Refused:
    """Machines that can't be drilled, by what was found when it was planned."""

    vms: tuple[str, ...]
    error: DrvmError


@dataclass(frozen=True, slots=True)
class _Chosen:
    """``missing``: machines of what was asked for that have no good point."""

    plans: list[Plan]
    refused: list[_Refused]
    missing: tuple[Absent, ...] = ()

    @property
    def absent(self) -> list[Absent]:
        words = "it can't be drilled now"
        return [*self.missing, *(Absent(vm, words) for one in self.refused for vm in one.vms)]


def _chosen(
    invocation: Invocation,
    wiring: Wiring,
    points: tuple[str, ...],
    policy: str | None,
    wish: DrillWish,
    *,
    due: bool,
) -> _Chosen:
    """Those that are named, each by itself; then those of the policy; or what is owed. What can't
    be drilled keeps the others waiting no longer."""
    if due and (points or policy):
        raise UsageError("--due says by itself what is to be drilled")
    if not (due or policy or points):
        raise UsageError(
            "which points?", hint="drvm drill VM..., --policy NAME, or --due; drvm points"
        )
    named = [chosen_point(invocation, wiring, text).manifest for text in points]
    planned: list[tuple[list[str], Callable[[], list[Plan]]]] = [
        ([one.vm], functools.partial(_alone, wiring, one, wish))
        for one in {one.id: one for one in named}.values()
    ]
    missing: list[Absent] = []
    for one in _owed(invocation, wiring, policy, due=due):
        missing += one.absent
        for some in _apart(one.policy, one.points):
            vms = list(dict.fromkeys(point.manifest.vm for point in some))
            make = functools.partial(plan_policy, wiring, one.policy, some, wish, one.absent)
            planned.append((vms, make))
    plans: list[Plan] = []
    refused: list[_Refused] = []
    for names, plan in planned:
        try:
            plans += plan()
        except _OF_ONE as error:
            refused.append(_Refused(tuple(names), error))
    return _Chosen(plans, refused, tuple(dict.fromkeys(missing)))


def _alone(wiring: Wiring, point: Manifest, wish: DrillWish) -> list[Plan]:
    return [plan_drill_of(wiring, point, wish)]


def _owed(
    invocation: Invocation, wiring: Wiring, policy: str | None, *, due: bool
) -> Sequence[Owed]:
    """What the schedules owe, or all of a policy."""
    if due:
        if not any(one.drill and one.drill.schedule for one in wiring.settings.policies):
            invocation.warn("no policy has a schedule of drills, so nothing is ever due")
        found = owed(wiring, good_points(invocation, wiring.repository()))
    elif policy is not None:
        found = [_all_of(invocation, wiring, wiring.settings.policy_named(policy))]
    else:
        return ()
    for one in found:
        for point in {point.manifest.vm_uuid: point for point in one.points}.values():
            tell_foreign(invocation, wiring, point)
    return found


def _all_of(invocation: Invocation, wiring: Wiring, policy: PolicyConfig) -> Owed:
    good = good_points(invocation, wiring.repository())
    members = members_by_policy(wiring, good)[policy.name]
    for name in members.images:
        invocation.warn(f"{name} is image files, not a machine, and is never drilled")
    if not members.points:
        raise UsageError(
            f"policy {policy.name!r} covers no VM that has points",
            hint=f"drvm backup --policy {policy.name} takes some; drvm vms shows the policy of "
            "each VM",
        )
    return Owed(policy, members.points, members.absent)


def _apart(policy: PolicyConfig, points: Sequence[Point]) -> list[Sequence[Point]]:
    """What can be drilled without the rest."""
    if policy.drill is not None and policy.drill.stages:
        return [points]
    machines: dict[str, list[Point]] = {}
    for point in points:
        machines.setdefault(point.manifest.vm_uuid, []).append(point)
    return [*machines.values()]


def _written_report(invocation: Invocation, wiring: Wiring, path: Path) -> Path | None:
    """What was found is told also where no page of it can be written."""
    try:
        report = gather_report(wiring, latest_runs(wiring), pictures=True)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        publish(path, html_report(report).encode())
    except Interrupted:
        raise
    except (DrvmError, OSError) as error:
        invocation.warn(f"the report {path} can't be written: {error}; drvm report makes it anew")
        return None
    return path


def _show(
    invocation: Invocation, chosen: _Chosen, done: Sequence[Carried], report: Path | None
) -> None:
    results = [result for one in done for result in one.results]
    for result in results:
        for warning in result.warnings:
            invocation.warn(f"{result.vm}: {warning}")
    broken = [
        Absent(vm, "it could not be drilled") for one in done if not one.results for vm in one.vms
    ]
    show_drills(invocation.output, Drilled(results, [*chosen.absent, *broken], report))


def _end(invocation: Invocation, chosen: _Chosen, done: Sequence[Carried]) -> int:
    """The exit code. Raises ``DrillFailed``, or the first error of a drill that has no result."""
    results = [result for one in done for result in one.results]
    failed = [result.vm for result in results if not result.passed]
    errors = [one.error for one in chosen.refused]
    errors += [one.error for one in done if one.error is not None]
    for error in errors if failed else errors[1:]:
        problems = error.problems if isinstance(error, PreflightFailed) else ()
        words = ": ".join(filter(None, (error.message, "; ".join(problems), error.hint)))
        invocation.stderr.write(f"drvm: error: {printable(words, 1000)}\n")
    if failed:
        raise DrillFailed(
            f"{len(failed)} of {len(results)} drills failed: {', '.join(failed)}",
            hint="see what its checks found; drvm points VM shows older points to drill",
        )
    if errors:
        raise errors[0]
    return DONE_WITH_WARNINGS if chosen.missing else DONE
