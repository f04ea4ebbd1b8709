"""``drvm import FILE...``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import opened
from drvm.cli.views import point_fields, show_points
from drvm.core.errors import UsageError
from drvm.core.ids import is_vm_name
from drvm.core.units import MIB, format_bytes, parse_bytes
from drvm.host.foreign import SUFFIXES, ForeignImage
from drvm.restore.export.kvm import Bus, NewMachine, definition, targets
from drvm.restore.export.package import Package, is_package, open_package
from drvm.snapshot.imagefiles import machine_uuid
from drvm.snapshot.imported import Import
from drvm.store.first_versions import alarms_of
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import look_at_import, take_imported_point


@dataclass(frozen=True, slots=True)
class _Wanted:
    """``machine`` is ``None`` for images only."""

    images: tuple[ForeignImage, ...]
    machine: NewMachine | None
    package: Package | None = None

    def named(self, name: str) -> Import:
        if self.machine is None:
            disks = tuple(f"disk{number}" for number in range(len(self.images)))
            return Import(dict(zip(disks, self.images, strict=True)))
        disks = targets(len(self.images), self.machine.bus)
        xml = definition(self.machine, name, machine_uuid(name), disks)
        return Import(dict(zip(disks, self.images, strict=True)), xml)


def _complete(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(begun, type="file")]


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=_complete)
@click.option("--name", metavar="NAME", required=True, help="What the machine is called.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(sorted(set(SUFFIXES.values()))),
    help="Of the images; default: by the suffix.",
)
@click.option("--memory", metavar="SIZE", help="Make a machine around images, with such a memory.")
@click.option("--cpus", type=click.IntRange(1, 1024), metavar="N", help="And so many CPUs.")
@click.option("--uefi", is_flag=True, help="And UEFI as its firmware.")
@click.option(
    "--virtio", is_flag=True, help="Disks and network cards on virtio; default: SATA and E1000."
)
@click.option("--dry-run", is_flag=True, help="Say what would be imported; store nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    files: tuple[str, ...],
    name: str,
    image_format: str | None,
    memory: str | None,
    cpus: int | None,
    uefi: bool,
    virtio: bool,
    dry_run: bool,
) -> int:
    """Take disk images of another hypervisor in, as a recovery point.

    FILE is an OVA, an OVF with its files beside it, or the images of a machine: vmdk (in one
    file), vdi, vhdx, qcow2, raw. From an OVF, or with --memory, comes a machine that drvm restore
    makes on KVM. Guests that have virtio's drivers are faster with --virtio. Images that name
    other files are refused, and files that are not what the package's manifest (.mf) says.

    \b
    Examples:
      drvm import web1.ova --name web1
      drvm import --name web1 --memory 4GiB --cpus 2 disk.vmdk data.vmdk
      drvm restore web1 --start
    """
    if not is_vm_name(name):
        raise UsageError(f"{name!r} can't be a name", hint="letters, digits and . _ + @ -")
    paths = [Path(file).absolute() for file in files]
    about = {"--cpus": cpus, "--uefi": uefi}
    if any(map(is_package, paths)):
        given = {**about, "--memory": memory, "--format": image_format}
        wanted = _from_package(paths, [key for key, value in given.items() if value], virtio)
    else:
        _refuse([key for key, value in about.items() if value and memory is None], "--memory")
        _refuse(["--virtio"] if virtio and memory is None else [], "--memory")
        machine = None
        if memory is not None:
            bus: Bus = "virtio" if virtio else "sata"
            machine = NewMachine(_memory_mib(memory), cpus or 1, efi=uefi, bus=bus)
        wanted = _Wanted(tuple(_image(path, image_format) for path in paths), machine)
    with opened(invocation) as wiring:
        what = wanted.named(name)
        notes = wanted.package.appliance.notes if wanted.package is not None else ()
        for note in notes:
            invocation.warn(note)
        if dry_run:
            _show(invocation, wiring, name, what)
            return DONE
        with invocation.progress() as progress:
            if wanted.package is not None:
                wanted.package.check(progress)
            result = take_imported_point(wiring, name, what, progress, invocation.trace)
        manifest = result.point.manifest
        if invocation.output.json:
            fields = {"points": [point_fields(manifest)], "notes": notes}
            invocation.output.document(fields)
        else:
            show_points(invocation.output, [manifest])
        return DONE_WITH_WARNINGS if alarms_of(wiring.repository().store) else DONE


def _from_package(paths: Sequence[Path], given: Sequence[str], virtio: bool) -> _Wanted:
    if given:
        raise UsageError(
            f"{', '.join(given)} means nothing with an OVF", hint="it says that itself"
        )
    if len(paths) > 1:
        raise UsageError(
            "an OVF or OVA is imported by itself", hint="drvm import FILE.ova --name NAME"
        )
    package = open_package(paths[0])
    appliance = package.appliance
    machine = NewMachine(
        appliance.memory_mib,
        appliance.cpus,
        efi=appliance.efi,
        secure_boot=appliance.secure_boot,
        windows=appliance.windows,
        networks=appliance.networks,
        bus="virtio" if virtio else "sata",
    )
    return _Wanted(package.images, machine, package)


def _memory_mib(text: str) -> int:
    try:
        size_mib = parse_bytes(text) // MIB
    except ValueError:
        size_mib = 0
    if not 0 < size_mib < 1 << 24:
        raise UsageError(f"{text!r} is no size of a memory", hint="such as --memory 2GiB")
    return size_mib


def _refuse(given: Sequence[str], without: str) -> None:
    if given:
        raise UsageError(
            f"{', '.join(given)} without {without} means nothing",
            hint="drvm import --memory SIZE makes a machine around the images",
        )


def _image(path: Path, image_format: str | None) -> ForeignImage:
    found = image_format or SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"the format of {path} is not known",
            hint="say what it is: --format vmdk, vdi, vhdx, qcow2 or raw",
        )
    return ForeignImage(path, found)


def _show(invocation: Invocation, wiring: Wiring, name: str, what: Import) -> None:
    images = look_at_import(wiring, what)
    if invocation.output.json:
        disks = [
            {
                "target": target,
                "path": info.path,
                "format": info.format,
                "size_bytes": info.virtual_size_bytes,
            }
            for target, info in images.items()
        ]
        plan = {"vm": name, "images": disks, "definition": what.definition_xml}
        invocation.output.document({"plan": plan})
        return
    invocation.output.line(f"{name}:")
    for target, info in images.items():
        size = format_bytes(info.virtual_size_bytes)
        invocation.output.line(f"  {target}: {size} {info.format}, {info.path}")
    if what.definition_xml is not None:
        invocation.output.block(what.definition_xml)
