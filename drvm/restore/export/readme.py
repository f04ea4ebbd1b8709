"""What people are told beside an exported machine."""

from __future__ import annotations

from drvm.restore.export.machine import ExportedMachine
from drvm.restore.export.plan import ExportPlan

_HOW = {
    "vmdk": (
        "VMware: deploy {file} in the client, or: ovftool {file} vi://HOST/",
        "VirtualBox: VBoxManage import {file}",
    ),
    "vdi": ("VirtualBox: VBoxManage import {file}, or attach the disks to a machine by hand",),
    "vhdx": (
        "Hyper-V reads no OVF: make a machine by hand with what {file} says, of generation "
        "{generation}, and attach the disks",
    ),
}


def readme(plan: ExportPlan, machine: ExportedMachine) -> bytes:
    generation = 2 if machine.efi else 1
    image_format = plan.disks[0].format
    file = plan.ova.name if plan.in_archive else plan.ovf.name
    how = [line.format(file=file, generation=generation) for line in _HOW[image_format]]
    firmware = "UEFI" if machine.efi else "BIOS"
    lines = [
        f"{plan.name}, recovery point {plan.manifest.id} of {plan.manifest.created}, by drvm",
        "",
        f"{machine.cpus} CPU(s), {machine.memory_mib} MiB of memory, {firmware}",
        *(f"disk {disk.image.disk.target}: {disk.path.name}" for disk in plan.disks),
        *(f"network card {number}: {name}" for number, name in enumerate(machine.networks, 1)),
        "",
        "How to import it:",
        *(f"- {line}" for line in how),
        "",
        "What is another than it was, or is not carried over:",
        *(f"- {note}" for note in machine.notes),
    ]
    return "\n".join(lines).encode() + b"\n"
