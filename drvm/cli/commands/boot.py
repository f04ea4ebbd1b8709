"""``drvm boot``."""

from __future__ import annotations

from typing import Any, Literal

import click

from drvm.cli.commands.restore import mapped
from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.config.settings import Overrides
from drvm.core.errors import UsageError
from drvm.core.ids import is_vm_name
from drvm.core.units import format_bytes
from drvm.repository.points import Point
from drvm.restore.instant.goon import begin_pull, discard, finish, resume
from drvm.restore.instant.look import BootState, look
from drvm.restore.instant.parts import Parts
from drvm.restore.instant.start import Booted, make_way, plan_boot, start_boot
from drvm.restore.machine.difference import difference
from drvm.restore.plan import RestorePlan, RestoreRequest
from drvm.wiring.assembly import Wiring
from drvm.wiring.instant import instant_parts, service_for
from drvm.wiring.serving import service_of

_VERBS = ("finish", "resume", "discard")


@click.command("boot")
@click.argument("point", required=False)
@click.option("--name", metavar="NAME", help="Of the machine; a new identity goes with it.")
@click.option("--keep-identity", is_flag=True, help="The original's name, UUID and MACs.")
@click.option("--pool", metavar="POOL", help="Of its images.  [default: default]")
@click.option(
    "--map-network",
    multiple=True,
    metavar="OLD=NEW",
    help="Another network: NEW is NAME or bridge:NAME; repeatable.",
)
@click.option(
    "--map-pool",
    multiple=True,
    metavar="OLD=NEW",
    help="Some images to another pool: OLD is a disk, or the pool it was in; repeatable.",
)
@click.option("--machine", metavar="TYPE", help="Machine type instead of the original's.")
@click.option("--cpu", metavar="CPU", help="CPU mode or model instead of the original's.")
@click.option("--virt-type", type=click.Choice(["kvm", "qemu"]), help="qemu: emulated.")
@click.option("--pull", is_flag=True, help="Begin at once to pull its disks, in the background.")
@click.option(
    "--bandwidth", type=click.IntRange(0, 1 << 20), default=0, metavar="MIB_S", help="Of a pull."
)
@click.option("--finish", metavar="NAME", help="Pull the rest: then its disks are plain.")
@click.option("--resume", metavar="NAME", help="Go on after the server, drvm or the host died.")
@click.option("--discard", metavar="NAME", help="Remove it with all that its guest has written.")
@click.option("--list", "listing", is_flag=True, help="Show what was booted.  [the default]")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--yes", is_flag=True, help="Don't ask before one is discarded.")
@at_time
@click.pass_obj
def command(invocation: Invocation, /, point: str | None, **options: Any) -> int:
    """Start a machine from a recovery point at once, before its disks are restored.

    Its disks are local images over a server that reads the point from the repository: what the
    guest writes stays local, what it reads comes as it is asked for. --finish (or --pull, while it
    runs) pulls the rest, and makes them plain disks without the repository; --discard removes the
    machine. If the server, drvm or the host dies, what the guest has written is kept, and --resume
    goes on.

    \b
    Examples:
      drvm boot web1 --name web1-now
      drvm boot web1@2026-11-23T04:00 --keep-identity --pull
      drvm boot --finish web1-now
      drvm boot
    """
    asked = [verb for verb in _VERBS if options[verb] is not None]
    if len(asked) + (point is not None) > 1 or (options["listing"] and (asked or point)):
        raise UsageError(
            "a POINT, --finish, --resume, --discard and --list exclude each other",
            hint="one of them at a time",
        )
    if point is not None:
        return _boot(invocation, point, options)
    with opened(invocation) as wiring:
        parts = instant_parts(wiring, wiring.local_host(), invocation.trace)
        if asked and options["dry_run"]:
            _show_what_is(invocation, parts, asked[0], options[asked[0]])
            return 0
        if asked:
            _go_on(invocation, wiring, parts, asked[0], options)
            return ending(wiring)
        _list(invocation, parts)
    return 0


def _boot(invocation: Invocation, text: str, options: dict[str, Any]) -> int:
    with opened(invocation, Overrides(as_of=options["as_of"])) as wiring:
        point = chosen_point(invocation, wiring, text)
        request = _request(point, options)
        parts = instant_parts(wiring, wiring.local_host(), invocation.trace)
        name = request.name or point.manifest.vm
        if options["dry_run"]:
            plan = plan_boot(wiring.repository(), point.manifest, parts.host, request)
            _show_plan(invocation, plan, parts.host.uri)
            return ending(wiring)
        with parts.boots.lock(name):
            make_way(parts, name, wiring.repository())
            plan = plan_boot(wiring.repository(), point.manifest, parts.host, request)
            for line in plan.definition.dropped:
                invocation.warn(f"left out of the definition: {line}")
            booted = _start(invocation, wiring, parts, plan, point)
            if options["pull"]:
                begin_pull(parts, booted.boot, bandwidth_mib_s=options["bandwidth"])
        _tell(invocation, booted, pulling=options["pull"])
        return ending(wiring)


def _request(point: Point, options: dict[str, Any]) -> RestoreRequest:
    name, keep = options["name"], options["keep_identity"]
    if name is None and not keep:
        raise UsageError(
            "the machine needs a name of its own",
            hint="add --name NEWNAME, or --keep-identity where the original is gone",
        )
    if not is_vm_name(name or point.manifest.vm):
        raise UsageError(
            f"{name or point.manifest.vm!r} can't be the name of a machine",
            hint="letters, digits and . _ + @ -",
        )
    identity: Literal["keep", "clone"] = "keep" if keep else "clone"
    return RestoreRequest(
        identity=identity,
        name=name,
        pool=options["pool"] or "default",
        networks=mapped("--map-network", options["map_network"], "lan=isolated"),
        pools=mapped("--map-pool", options["map_pool"], "vdb=fast"),
        virt_type=options["virt_type"],
        machine=options["machine"],
        cpu=options["cpu"],
    )


def _start(
    invocation: Invocation, wiring: Wiring, parts: Parts, plan: RestorePlan, point: Point
) -> Booted:
    service = service_of(wiring, point, [image.disk.target for image in plan.images], boot=True)
    with invocation.progress() as progress:
        return start_boot(
            parts, plan, point, wiring.repository(), service, progress, writer=wiring.writer
        )


def _go_on(
    invocation: Invocation, wiring: Wiring, parts: Parts, verb: str, options: dict[str, Any]
) -> None:
    name = options[verb]
    boot = parts.boots.named(name)
    if verb == "discard":
        invocation.confirm(
            f"remove {name} with all that its guest has written?", yes=options["yes"]
        )
    told: tuple[str, ...] = ()
    with parts.boots.lock(name), invocation.progress() as progress:
        boot = parts.boots.named(name)
        if verb == "discard":
            told = discard(parts, boot, wiring.repository())
        elif verb == "resume":
            resume(parts, boot, lambda: service_for(wiring, boot))
        else:
            told = finish(
                parts,
                boot,
                wiring.repository(),
                lambda: service_for(wiring, boot),
                progress,
                bandwidth_mib_s=options["bandwidth"],
            )
    for line in told:
        invocation.warn(line)
    done = {"discard": "discarded", "resume": "resumed", "finish": "finished"}[verb]
    if invocation.output.json:
        fields = {"name": name, "vm_uuid": boot.vm_uuid, "point": boot.point}
        invocation.output.document({done: fields})
        return
    after = ": its disks need the repository no more" if verb == "finish" else ""
    invocation.output.line(f"{done} {name}{after}")


def _show_what_is(invocation: Invocation, parts: Parts, verb: str, name: str) -> None:
    """What ``--dry-run`` tells of a verb: nothing is changed."""
    boot = parts.boots.named(name)
    state = next((state for state in look(parts) if state.boot.name == name), None)
    if invocation.output.json:
        fields = {"verb": verb, "name": name, "state": _fields(state) if state else None}
        invocation.output.document({"plan": fields})
        return
    what = {
        "discard": "the machine and these images would be removed, with all that is in them",
        "resume": "its server and the machine would be started, where they don't run",
        "finish": "what these images lack would be pulled into them",
    }[verb]
    invocation.output.line(f"{name}: {state.words if state else 'on another host'}; {what}:")
    for disk in boot.disks:
        invocation.output.line(f"  {disk.target}: {disk.image}")


def _list(invocation: Invocation, parts: Parts) -> None:
    states = look(parts)
    if invocation.output.json:
        invocation.output.document({"boots": [_fields(state) for state in states]})
        return
    if not states:
        invocation.output.line("no machine runs over a point; drvm boot POINT --name N starts one")
        return
    rows = [
        [s.boot.name, short_time(s.boot.created), s.words + (f" ({s.hint})" if s.hint else "")]
        for s in states
    ]
    invocation.output.table([Column("name"), Column("booted"), Column("state", wraps=True)], rows)


def _fields(state: BootState) -> dict[str, Any]:
    boot = state.boot
    return {
        "name": boot.name,
        "vm_uuid": boot.vm_uuid,
        "point": boot.point,
        "origin": boot.origin,
        "repository": boot.location or None,
        "created": boot.created,
        "phase": boot.phase,
        "machine": state.machine,
        "served": state.served,
        "busy": state.busy,
        "ok": state.ok,
        "hint": state.hint,
        "disks": [
            {
                "target": disk.target,
                "path": disk.image,
                "over_repository": disk.target in state.left,
                "pulled_bytes": state.pulling.get(disk.target, (None, None))[0],
                "pull_bytes": state.pulling.get(disk.target, (None, None))[1],
            }
            for disk in boot.disks
        ],
    }


def _show_plan(invocation: Invocation, plan: RestorePlan, uri: str) -> None:
    output, definition = invocation.output, plan.definition
    changes = difference(plan.original_xml, definition.xml)
    if output.json:
        fields = {
            "point": plan.manifest.id,
            "to": uri,
            "room": plan.room,
            "images": [
                {"target": i.disk.target, "path": i.path, "size_bytes": i.size_bytes}
                for i in plan.images
            ],
            "need_bytes": plan.need_bytes,
            "left_out": definition.dropped,
            "changed": definition.changed,
            "definition_difference": changes,
        }
        output.document({"plan": fields})
        return
    created = short_time(plan.manifest.created)
    output.line(f"{plan.manifest.vm}, point {plan.manifest.id} of {created} UTC, at once on {uri}")
    for image in plan.images:
        size = format_bytes(image.size_bytes)
        output.line(f"  {image.disk.target}: {size} over the repository -> {image.path}")
    for pool, need_bytes in plan.room.items():
        output.line(f"  in the end up to {format_bytes(need_bytes)} in pool {pool}")
    for title, lines in (("changed", definition.changed), ("left out", definition.dropped)):
        for line in lines:
            output.line(f"  {title}: {line}")
    output.block(changes)


def _tell(invocation: Invocation, booted: Booted, *, pulling: bool) -> None:
    boot = booted.boot
    for line in booted.warnings:
        invocation.warn(line)
    if invocation.output.json:
        fields = {
            "name": boot.name,
            "vm_uuid": boot.vm_uuid,
            "point": boot.point,
            "files": [disk.image for disk in boot.disks],
            "pulling": pulling,
        }
        invocation.output.document({"booted": fields})
        return
    output = invocation.output
    output.line(f"booted {boot.name} from point {boot.point} of {boot.origin}")
    rest = "waits for the pull to end and makes" if pulling else "pulls the rest and makes"
    output.line(f"  drvm boot --finish {boot.name}   {rest} its disks plain")
    output.line(f"  drvm boot --discard {boot.name}  removes it")
