"""``drvm backup VM...``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import click
from click.shell_completion import CompletionItem

from drvm.backup.plan import BackupPlan
from drvm.backup.run import BackupResult
from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import opened
from drvm.cli.views import point_fields, show_points
from drvm.core.errors import DrvmError, Interrupted, UnknownVm, UsageError
from drvm.core.ids import is_vm_name
from drvm.core.progress import Progress
from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.snapshot.imagefiles import ImageFile
from drvm.store.first_versions import alarms_of
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import covered, policy_of_vm
from drvm.wiring.jobs import (
    BackupOptions,
    by_host,
    plan_point,
    take_group,
    take_image_point,
    take_point,
)


@dataclass(slots=True)
class _Outcome:
    """``warned``: some point was taken, and something about it is not as it should be."""

    points: list[Manifest] = field(default_factory=list)
    failures: list[tuple[str, DrvmError]] = field(default_factory=list)
    warned: bool = False


def _complete(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Files for the shell to find; names of VMs are not looked up."""
    return [CompletionItem(begun, type="file")] if ctx.params.get("image") else []


@click.command("backup")
@click.argument("vms", nargs=-1, metavar="VM...", shell_complete=_complete)
@click.option("--policy", metavar="NAME", help="All VMs of this policy.")
@click.option("--image", is_flag=True, help="The arguments are image files without a VM.")
@click.option("--name", metavar="NAME", help="With --image: what they are called together.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", "qcow2"]),
    help="With --image: their format; default: by the suffix.",
)
@click.option(
    "--exclude-disk",
    multiple=True,
    metavar="TARGET",
    help="Leave this disk out, such as vdb; repeatable.",
)
@click.option(
    "--require-filesystem",
    is_flag=True,
    help="No point, but an error, where the guest can't be frozen.",
)
@click.option(
    "--freeze-timeout",
    type=click.IntRange(1, 10),
    metavar="SECONDS",
    help="How long the guest may stay frozen, 1 to 10.",
)
@click.option(
    "--group",
    is_flag=True,
    help="All VMs at one instant, or none: a consistency group.",
)
@click.option("--memory", is_flag=True, help="With its memory, so that it can be restored running.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; touch nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    vms: tuple[str, ...],
    policy: str | None,
    image: bool,
    name: str | None,
    image_format: Literal["raw", "qcow2"] | None,
    exclude_disk: tuple[str, ...],
    require_filesystem: bool,
    freeze_timeout: int | None,
    group: bool,
    memory: bool,
    dry_run: bool,
) -> int:
    """Take a recovery point of each VM now, running or not.

    A running guest is frozen for the fraction of a second that a snapshot takes, where its agent
    answers. How a VM is captured is what its policy says, changed by the options here. One VM
    that fails does not keep the others from being backed up.

    \b
    Examples:
      drvm backup web1 db1
      drvm backup --policy nightly
      drvm backup --group web1 db1
      drvm backup --memory web1
      drvm backup --image --name firewall /srv/firewall.qcow2
    """
    about_vms = {
        "--policy": policy,
        "--exclude-disk": exclude_disk,
        "--require-filesystem": require_filesystem,
        "--freeze-timeout": freeze_timeout,
        "--group": group,
        "--memory": memory,
        "--dry-run": dry_run,
    }
    _refuse_foreign(about_vms if image else {"--name": name, "--format": image_format}, image)
    with opened(invocation) as wiring:
        if image:
            outcome = _images(invocation, wiring, vms, name, image_format)
        else:
            names = _names(wiring, vms, policy)
            asked = BackupOptions(
                exclude_disks=frozenset(exclude_disk),
                require_filesystem=require_filesystem,
                freeze_timeout_s=freeze_timeout or 0,
                memory=memory,
            )
            options = partial(_options, wiring, asked)
            if dry_run:
                _show_plans(invocation, [plan_point(wiring, vm, options(vm)) for vm in names])
                return DONE
            groups = [names] if group else _groups(wiring, names, policy)
            outcome = _take_vms(invocation, wiring, names, groups, options)
        touched = alarms_of(wiring.repository().store)
    for alarm in touched:
        invocation.warn(alarm)
    code = _tell(invocation, outcome)
    return DONE_WITH_WARNINGS if touched and code == DONE else code


def _options(wiring: Wiring, asked: BackupOptions, vm: str) -> BackupOptions:
    """As its policy says, changed by what was asked for; 0 s of freeze are as it says."""
    chosen = BackupOptions.of(policy_of_vm(wiring, vm), vm)
    return dataclasses.replace(
        chosen,
        exclude_disks=chosen.exclude_disks | asked.exclude_disks,
        require_filesystem=chosen.require_filesystem or asked.require_filesystem,
        freeze_timeout_s=asked.freeze_timeout_s or chosen.freeze_timeout_s,
        memory=asked.memory,
    )


def _refuse_foreign(options: Mapping[str, object], image: bool) -> None:
    """An option that would be without any effect is likely a misunderstanding."""
    given = ", ".join(name for name, value in options.items() if value)
    if given and image:
        raise UsageError(
            f"{given} and --image exclude each other",
            hint="drvm backup --image --name NAME FILE...",
        )
    if given:
        raise UsageError(
            f"{given} without --image means nothing",
            hint="drvm backup --image --name NAME FILE..., or drvm backup VM...",
        )


def _names(wiring: Wiring, vms: Sequence[str], policy: str | None) -> list[str]:
    """In the order given, each once. All must exist before the first is touched."""
    if policy is not None:
        chosen = wiring.settings.policy_named(policy)
        vms = (*vms, *covered(wiring, chosen))
        if not vms:
            raise UsageError(
                f"policy {policy!r} covers no VM of the hosts",
                hint="drvm vms shows the policy of each VM",
            )
    if not vms:
        raise UsageError("which VMs?", hint="drvm backup VM..., or --policy NAME; drvm vms")
    return list(dict.fromkeys(_found(wiring, vm) for vm in vms))


def _found(wiring: Wiring, vm: str) -> str:
    """Its name. Raises ``UnknownVm``."""
    try:
        return wiring.find(vm)[1].name
    except UnknownVm as error:
        if "/" in vm or Path(vm).is_file():
            error.hint = f"is it an image file? drvm backup --image --name NAME {vm}"
        raise


def _images(
    invocation: Invocation,
    wiring: Wiring,
    paths: Sequence[str],
    name: str | None,
    image_format: str | None,
) -> _Outcome:
    if not paths or name is None:
        what = "--image needs a name for its files" if paths else "which image files?"
        raise UsageError(what, hint="drvm backup --image --name NAME FILE...")
    if not is_vm_name(name):
        raise UsageError(f"{name!r} can't be a name", hint="letters, digits and . _ + @ -")
    files = [ImageFile(Path(path).absolute(), image_format) for path in paths]
    if len({file.path.resolve() for file in files}) < len(files):
        raise UsageError("an image file is named twice", hint="name each disk of the machine once")
    return _take(
        invocation, [name], lambda _, progress: take_image_point(wiring, name, files, progress)
    )


def _take(
    invocation: Invocation, names: Sequence[str], take: Callable[[str, Progress], BackupResult]
) -> _Outcome:
    outcome = _Outcome()
    with invocation.progress() as progress:
        for vm in names:
            try:
                result = take(vm, progress)
            except Interrupted:
                raise
            except DrvmError as error:
                if len(names) == 1:
                    raise
                outcome.failures.append((vm, error))
                continue
            _note(invocation, outcome, vm, result)
    return outcome


def _groups(wiring: Wiring, names: Sequence[str], policy: str | None) -> list[list[str]]:
    """Empty where each VM is backed up by itself."""
    if policy is None or not wiring.settings.policy_named(policy).group:
        return []
    return by_host(wiring, names)


def _take_vms(
    invocation: Invocation,
    wiring: Wiring,
    names: Sequence[str],
    groups: Sequence[Sequence[str]],
    options: Callable[[str], BackupOptions],
) -> _Outcome:
    if not groups:
        return _take(
            invocation,
            names,
            lambda vm, bar: take_point(wiring, vm, options(vm), bar, invocation.trace),
        )
    if any(options(vm).memory for vm in names):
        raise UsageError(
            "the memory of a consistency group is not captured",
            hint="name its VMs, without --group and --policy",
        )
    outcome = _Outcome()
    with invocation.progress() as progress:
        for group in groups:
            for vm, result in take_group(wiring, group, options, progress, invocation.trace):
                if isinstance(result, DrvmError):
                    outcome.failures.append((vm, result))
                else:
                    _note(invocation, outcome, vm, result)
    return outcome


def _note(invocation: Invocation, outcome: _Outcome, vm: str, result: BackupResult) -> None:
    manifest = result.point.manifest
    outcome.points.append(manifest)
    for warning in manifest.warnings:
        invocation.warn(f"{vm}: {warning}")
    outcome.warned |= bool(manifest.warnings)
    if result.cleanup is not None:
        outcome.failures.append((vm, result.cleanup))


def _tell(invocation: Invocation, outcome: _Outcome) -> int:
    if invocation.output.json:
        failed = [
            {"vm": vm, "message": error.message, "hint": error.hint}
            for vm, error in outcome.failures
        ]
        fields = {"points": [point_fields(manifest) for manifest in outcome.points]}
        invocation.output.document({**fields, "failed": failed})
    elif outcome.points:
        show_points(invocation.output, outcome.points)
    for vm, error in outcome.failures:
        hint = f" ({error.hint})" if error.hint else ""
        invocation.stderr.write(f"drvm: error: {printable(f'{vm}: {error.message}{hint}')}\n")
    if outcome.failures:
        return outcome.failures[0][1].exit_code
    return DONE_WITH_WARNINGS if outcome.warned else DONE


def _show_plans(invocation: Invocation, plans: Sequence[BackupPlan]) -> None:
    if invocation.output.json:
        invocation.output.document({"plans": plans})
        return
    for plan in plans:
        since = f", after point {plan.parent}" if plan.parent is not None else ", its first point"
        invocation.output.line(f"{plan.vm}: engine {plan.engine} ({plan.reason}){since}")
        for disk in plan.disks:
            size = format_bytes(disk.size_bytes)
            invocation.output.line(f"  {disk.target}: {size} {disk.format}, {disk.path}")
        for text in (*plan.warnings, *(f"{target} is left out" for target in plan.left_out)):
            invocation.output.line(f"  note: {text}")
