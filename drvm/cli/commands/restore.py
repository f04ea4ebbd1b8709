"""``drvm restore POINT``, and what ``drvm clone`` shares with it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from drvm.cli.in_place import InPlace, refuse_with_in_place, restore_in_place
from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.cli.restore_view import image_fields, list_images, show_plan, tell_restored
from drvm.cli.running import refuse_with_running
from drvm.config.settings import Overrides
from drvm.core.errors import UsageError
from drvm.core.ids import is_vm_name
from drvm.repository.manifest import Manifest
from drvm.restore.plan import IdentityMode, RestoreRequest, plan_folder, plan_restore
from drvm.restore.run import run_folder, run_restore
from drvm.restore.sysprep import chosen_operations
from drvm.restore.targets.block_device import is_empty
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
    pools: dict[str, str]
    devices: dict[str, Path]
    machine: str | None
    cpu: str | None
    virt_type: Literal["kvm", "qemu"] | None
    sysprep: tuple[str, ...]
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
    click.option(
        "--map-pool",
        multiple=True,
        metavar="OLD=NEW",
        help="Another pool for the disks that OLD names: a target such as vda, or the pool or "
        "directory that they were in; repeatable.",
    ),
    click.option(
        "--device",
        multiple=True,
        metavar="TARGET=PATH",
        help="This disk onto a block device of this machine, such as vda=/dev/sdb; repeatable.",
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
    click.option(
        "--sysprep",
        metavar="OPERATIONS",
        is_flag=False,
        flag_value="default",
        help="Of a clone: machine-id, SSH host keys, DHCP leases and the like anew inside its "
        "disks, by virt-sysprep; --sysprep=OPERATIONS for others.",
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
    return TargetOptions(
        to=options["to"],
        pool=options["pool"] or "default",
        image_format=options["image_format"],
        disks=frozenset(options["disk"]) or None,
        networks=mapped("--map-network", options["map_network"], "lan=isolated"),
        pools=mapped("--map-pool", options["map_pool"], "vdb=fast"),
        devices=_devices(options["device"]),
        machine=options["machine"],
        cpu=options["cpu"],
        virt_type=options["virt_type"],
        sysprep=chosen_operations(options["sysprep"]) if options["sysprep"] else (),
        start=options["start"],
        verify=options["verify"],
        dry_run=options["dry_run"],
        as_of=options["as_of"],
    )


def _devices(texts: Sequence[str]) -> dict[str, Path]:
    named = mapped("--device", texts, "vda=/dev/sdb")
    return {target: Path(path).absolute() for target, path in named.items()}


def mapped(switch: str, texts: Sequence[str], example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        old, sign, new = text.rpartition("=")
        if not (old and sign and new):
            raise UsageError(
                f"{switch} {text!r} is not OLD=NEW", hint=f"such as {switch} {example}"
            )
        if found.setdefault(old, new) != new:
            raise UsageError(f"{switch} says of {old!r} two things", hint="give it once")
    return found


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
@click.option(
    "--in-place", is_flag=True, help="Turn the disks of the VM that is there (stopped) back."
)
@click.option("--no-safety-point", is_flag=True, help="With --in-place: take none before.")
@click.option("--running", is_flag=True, help="Let it go on from its memory (backup --memory).")
@click.option("--yes", is_flag=True, help="Don't ask before something is overwritten.")
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
    in_place: bool,
    no_safety_point: bool,
    running: bool,
    yes: bool,
    **options: Any,
) -> int:
    """Restore a machine from a recovery point, or its disks to a folder.

    POINT is VM (the latest good point), VM@latest, VM@TIME or the beginning of an id. Every block
    is verified, the machine is defined last, and no existing file is ever overwritten. With
    --in-place the images of the VM are read and what differs is written, after a point of them.

    Another host (--to) needs libvirt and a storage pool, and nothing of drvm.

    \b
    Examples:
      drvm restore web1 --start
      drvm restore web1 --to qemu+ssh://root@kvm2/system --pool images --start
      drvm restore web1@2026-11-23T04:00 --replace --yes
      drvm restore web1@2026-11-23T04:00 --in-place
      drvm restore web1 --as-of 2026-11-22T18:00 --output /srv/rescue
      drvm restore 3f9a --output /srv/rescue --format raw
    """
    if replace and clone:
        raise UsageError("--replace and --clone exclude each other", hint="choose one of them")
    identities = {"name": name, "replace": replace, "clone": clone}
    if running:
        about = {**identities, "output": output, "in_place": in_place, **options}
        refuse_with_running(about)
    if in_place:
        about = {**identities, "output": output, **options}
        refuse_with_in_place(about, safety=not no_safety_point, yes=yes)
    elif no_safety_point:
        raise UsageError("--no-safety-point means nothing alone", hint="add --in-place")
    elif output is not None:
        _refuse_with_output({**identities, **options})
    target = collect(options)
    with opened(invocation, Overrides(host_uri=target.to, as_of=target.as_of)) as wiring:
        manifest = chosen_point(invocation, wiring, point).manifest
        if in_place:
            wish = InPlace(target.disks, not no_safety_point, yes, target.start, target.dry_run)
            restore_in_place(invocation, wiring, manifest, wish)
            return ending(wiring)
        if output is not None:
            _to_folder(invocation, wiring, manifest, output, target)
            return ending(wiring)
        identity = "replace" if replace else "clone" if clone else "keep"
        request = make_request(target, cast(IdentityMode, identity), name, running=running)
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
    target: TargetOptions,
    identity: Literal["keep", "replace", "clone"],
    name: str | None,
    *,
    running: bool = False,
) -> RestoreRequest:
    if name is not None and not is_vm_name(name):
        raise UsageError(
            f"{name!r} can't be the name of a machine", hint="letters, digits and . _ + @ -"
        )
    if target.sysprep and identity != "clone":
        raise UsageError(
            "--sysprep takes from a machine what is its own", hint="it is for clones: drvm clone"
        )
    return RestoreRequest(
        identity=identity,
        name=name,
        pool=target.pool,
        format=target.image_format,
        disks=target.disks,
        networks=target.networks,
        pools=target.pools,
        devices=target.devices,
        virt_type=target.virt_type,
        machine=target.machine,
        cpu=target.cpu,
        sysprep=target.sysprep,
        running=running,
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
        show_plan(invocation, plan, host.uri)
        return
    for line in plan.definition.dropped:
        invocation.warn(f"left out of the definition: {line}")
    if host.remote and manifest.tpm:
        invocation.warn(
            "the state of its emulated TPM can't be carried to another machine: what is sealed by "
            "it there won't open; drvm on that machine restores it too"
        )
    if request.identity == "replace" and host.find_domain(manifest.vm_uuid) is not None:
        invocation.confirm(f"replace {manifest.vm} by its point {manifest.id}?", yes=yes)
    for image in plan.images:
        if image.device and not is_empty(image.path):
            invocation.confirm(f"overwrite {image.path}, which is not empty?", yes=yes)
    with invocation.progress() as progress:
        volumes = wiring.volume_restorer(host, verify=target.verify)
        restored = run_restore(
            plan,
            host,
            wiring.restorer(invocation.trace),
            progress,
            start=target.start,
            volumes=volumes,
            devices=wiring.device_restorer(invocation.trace),
            sysprep=wiring.sysprep,
            trace=invocation.trace,
        )
    tell_restored(invocation, manifest, restored, plan.left)


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
        list_images(invocation, images)
        if invocation.output.json:
            invocation.output.document({"plan": {"images": image_fields(images)}})
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
    tell_restored(invocation, manifest, restored)
