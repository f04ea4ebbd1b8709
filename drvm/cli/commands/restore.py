"""``drvm restore POINT``, and what ``drvm clone`` shares with it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.cli.views import short_time
from drvm.config.settings import Overrides
from drvm.core.errors import UsageError
from drvm.core.ids import is_vm_name
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.restore.difference import difference
from drvm.restore.images import PlannedImage
from drvm.restore.plan import RestorePlan, RestoreRequest, plan_folder, plan_restore
from drvm.restore.run import Restored, run_folder, run_restore
from drvm.wiring.assembly import Wiring

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The options of restore and clone, as they were given."""

    to: str | None
    pool: str
    image_format: Literal["raw", "qcow2"] | None
    disks: frozenset[str] | None
    networks: dict[str, str]
    machine: str | None
    cpu: str | None
    virt_type: Literal["kvm", "qemu"] | None
    start: bool
    verify: bool
    dry_run: bool
    as_of: dt.datetime | None


_OPTIONS = (
    click.option("--to", metavar="URI", help="The libvirt host; default: the first of the config."),
    click.option("--pool", metavar="POOL", help="Its storage pool.  [default: default]"),
    click.option(
        "--format",
        "image_format",
        type=click.Choice(["raw", "qcow2"]),
        help="Of the restored images; default: as they were.",
    ),
    click.option(
        "--disk", multiple=True, metavar="TARGET", help="Only this one, such as vda; repeatable."
    ),
    click.option(
        "--map-network",
        multiple=True,
        metavar="OLD=NEW",
        help="Another network: NEW is NAME or bridge:NAME; repeatable.",
    ),
    click.option("--machine", metavar="TYPE", help="Machine type instead of the original's."),
    click.option(
        "--cpu",
        metavar="CPU",
        help="host-model, host-passthrough, maximum or a model's name, instead of the original's.",
    ),
    click.option(
        "--virt-type",
        type=click.Choice(["kvm", "qemu"]),
        help="qemu: emulated, where there is no KVM.",
    ),
    click.option("--start", is_flag=True, help="Start the machine at the end."),
    click.option("--verify", is_flag=True, help="Read uploaded volumes back, and compare."),
    click.option("--dry-run", is_flag=True, help="Print the plan; write nothing."),
    at_time,
)


def target_options(function: Decorated) -> Decorated:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def collect(options: dict[str, Any]) -> TargetOptions:
    """Raises ``UsageError``."""
    networks: dict[str, str] = {}
    for text in options["map_network"]:
        old, found, new = text.partition("=")
        if not (old and found and new):
            raise UsageError(
                f"--map-network {text!r} is not OLD=NEW", hint="such as --map-network lan=isolated"
            )
        networks[old] = new
    return TargetOptions(
        to=options["to"],
        pool=options["pool"] or "default",
        image_format=options["image_format"],
        disks=frozenset(options["disk"]) or None,
        networks=networks,
        machine=options["machine"],
        cpu=options["cpu"],
        virt_type=options["virt_type"],
        start=options["start"],
        verify=options["verify"],
        dry_run=options["dry_run"],
        as_of=options["as_of"],
    )


@click.command("restore")
@click.argument("point")
@click.option("--name", metavar="NAME", help="Another name for the machine.")
@click.option("--replace", is_flag=True, help="Take the place of the VM that is there (stopped).")
@click.option("--clone", is_flag=True, help="A new identity: name, UUID, MACs. Needs --name.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="To this folder, without libvirt.",
)
@click.option("--yes", is_flag=True, help="Don't ask before a VM is replaced.")
@target_options
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    point: str,
    name: str | None,
    replace: bool,
    clone: bool,
    output: Path | None,
    yes: bool,
    **options: Any,
) -> int:
    """Restore a machine from a recovery point, or its disks to a folder.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. Every block
    is verified, the machine is defined last, and no existing file is ever overwritten.

    Another host (--to) needs libvirt and a storage pool, and nothing of drvm.

    \b
    Examples:
      drvm restore web1 --start
      drvm restore web1 --to qemu+ssh://root@kvm2/system --pool images --start
      drvm restore web1@2026-11-23T04:00 --replace --yes
      drvm restore web1 --as-of 2026-11-22T18:00 --output /srv/rescue
      drvm restore 3f9a --output /srv/rescue --format raw
    """
    if replace and clone:
        raise UsageError("--replace and --clone exclude each other", hint="choose one of them")
    if output is not None:
        _refuse_with_output({"name": name, "replace": replace, "clone": clone, **options})
    target = collect(options)
    with opened(invocation, Overrides(host_uri=target.to, as_of=target.as_of)) as wiring:
        manifest = chosen_point(invocation, wiring, point).manifest
        if output is not None:
            _to_folder(invocation, wiring, manifest, output, target)
            return ending(wiring)
        identity: Literal["keep", "replace", "clone"] = (
            "replace" if replace else "clone" if clone else "keep"
        )
        request = make_request(target, identity, name)
        restore_machine(invocation, wiring, manifest, request, target, yes=yes)
        return ending(wiring)


def _refuse_with_output(options: dict[str, Any]) -> None:
    """What is about a machine says nothing about images in a folder: likely a misunderstanding."""
    about_machine = (set(options) | {"start"}) - {"image_format", "disk", "dry_run", "as_of"}
    given = sorted(name for name in about_machine if options[name])
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{names} and --output exclude each other",
            hint="--output writes files only: leave it out to restore the machine",
        )


def make_request(
    target: TargetOptions, identity: Literal["keep", "replace", "clone"], name: str | None
) -> RestoreRequest:
    if name is not None and not is_vm_name(name):
        raise UsageError(
            f"{name!r} can't be the name of a machine", hint="letters, digits and . _ + @ -"
        )
    return RestoreRequest(
        identity=identity,
        name=name,
        pool=target.pool,
        format=target.image_format,
        disks=target.disks,
        networks=target.networks,
        virt_type=target.virt_type,
        machine=target.machine,
        cpu=target.cpu,
    )


def restore_machine(
    invocation: Invocation,
    wiring: Wiring,
    manifest: Manifest,
    request: RestoreRequest,
    target: TargetOptions,
    *,
    yes: bool,
) -> None:
    """Plan, show, ask where something is replaced, and do it."""
    host = wiring.host()
    plan = plan_restore(wiring.repository(), manifest, host, request)
    if target.dry_run:
        _show_plan(invocation, plan, host.uri)
        return
    for line in plan.definition.dropped:
        invocation.warn(f"left out of the definition: {line}")
    if request.identity == "replace" and host.find_domain(manifest.vm_uuid) is not None:
        invocation.confirm(f"replace {manifest.vm} by its point {manifest.id}?", yes=yes)
    with invocation.progress() as progress:
        volumes = wiring.volume_restorer(host, verify=target.verify)
        restored = run_restore(
            plan,
            host,
            wiring.restorer(invocation.trace),
            progress,
            start=target.start,
            volumes=volumes,
            trace=invocation.trace,
        )
    _tell(invocation, manifest, restored, plan.left)


def _to_folder(
    invocation: Invocation,
    wiring: Wiring,
    manifest: Manifest,
    output: Path,
    target: TargetOptions,
) -> None:
    directory = output.absolute()
    images = plan_folder(manifest, directory, target.disks, target.image_format)
    if target.dry_run:
        invocation.output.line(f"{manifest.vm}, point {manifest.id}, to {directory}:")
        _list_images(invocation, images)
        if invocation.output.json:
            invocation.output.document({"plan": {"images": _image_fields(images)}})
        return
    with invocation.progress() as progress:
        restored = run_folder(
            wiring.repository(),
            manifest,
            images,
            directory,
            wiring.restorer(invocation.trace),
            progress,
        )
    _tell(invocation, manifest, restored)


def _show_plan(invocation: Invocation, plan: RestorePlan, uri: str) -> None:
    output, definition = invocation.output, plan.definition
    changes = difference(plan.original_xml, definition.xml)
    if output.json:
        fields = {
            "point": plan.manifest.id,
            "to": uri,
            "pool": plan.pool,
            "images": _image_fields(plan.images),
            "need_bytes": plan.need_bytes,
            "left_out": definition.dropped,
            "changed": definition.changed,
            "definition_difference": changes,
        }
        output.document({"plan": fields})
        return
    created = short_time(plan.manifest.created)
    output.line(f"{plan.manifest.vm}, point {plan.manifest.id} of {created} UTC, to {uri}")
    _list_images(invocation, plan.images)
    output.line(f"  needs up to {format_bytes(plan.need_bytes)} in pool {plan.pool}")
    for title, lines in (("changed", definition.changed), ("left out", definition.dropped)):
        for line in lines:
            output.line(f"  {title}: {line}")
    output.block(changes)


def _list_images(invocation: Invocation, images: tuple[PlannedImage, ...]) -> None:
    for image in images:
        size = format_bytes(image.size_bytes)
        invocation.output.line(f"  {image.disk.target}: {size} {image.format} -> {image.path}")


def _image_fields(images: tuple[PlannedImage, ...]) -> list[dict[str, Any]]:
    return [
        {
            "target": image.disk.target,
            "path": image.path,
            "format": image.format,
            "size_bytes": image.size_bytes,
        }
        for image in images
    ]


def _tell(
    invocation: Invocation, manifest: Manifest, restored: Restored, left: tuple[str, ...] = ()
) -> None:
    if invocation.output.json:
        fields = {
            "point": manifest.id,
            "vm": restored.name or None,
            "vm_uuid": restored.uuid or None,
            "files": restored.files,
            "written_bytes": restored.written_bytes,
            "left_files": left,
        }
        invocation.output.document({"restored": fields})
        return
    what = f"as {restored.name}" if restored.name else "to files"
    size = format_bytes(restored.written_bytes)
    invocation.output.line(f"restored point {manifest.id} of {manifest.vm} {what}: {size} written")
    for path in restored.files:
        invocation.output.line(f"  {path}")
    for old in left:
        invocation.output.line(f"  left where it was: {old}")
