"""Points that are proven as they are taken: restored, and compared with the frozen images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import NoProgress
from drvm.repository.manifest import Manifest
from drvm.restore.plan import plan_folder
from drvm.restore.run import run_folder
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import BackupOptions, take_point
from tests.capturing import image_digest
from tests.guests import Guest


def proven_point(
    wiring: Wiring, guest: Guest, scratch: Path, options: BackupOptions | None = None
) -> Manifest:
    """A point of the guest, whose restored disks are byte for byte the frozen images: those were
    looked at by other means while they were frozen."""
    processes = SystemProcesses()
    frozen: dict[str, str] = {}

    def trace(step: str) -> None:
        if step == "reading":
            for target, (path, kind) in frozen_images(guest).items():
                frozen[target] = image_digest(path, kind, scratch, processes)

    taken = take_point(wiring, guest.name, options or BackupOptions(), NoProgress(), trace)
    assert taken.cleanup is None
    manifest = taken.point.manifest
    restored = restored_digests(wiring, manifest, scratch)
    assert restored == {target: frozen[target] for target in restored}
    return manifest


def restored_digests(wiring: Wiring, manifest: Manifest, scratch: Path) -> dict[str, str]:
    """SHA-256 of what the guest sees of each disk, restored to a folder."""
    out, processes = scratch / manifest.id, SystemProcesses()
    images = plan_folder(manifest, out, None, None)
    run_folder(wiring.repository(), manifest, images, out, wiring.restorer(), NoProgress())
    found = {
        image.disk.target: image_digest(image.path, image.format, scratch, processes)
        for image in images
    }
    shutil.rmtree(out)
    return found


def frozen_images(guest: Guest) -> dict[str, tuple[Path | str, str]]:
    """Target -> (image, format) of what a capture that is under way has frozen: what QEMU itself
    serves, the images right below those that the guest writes to, or, of a machine that is off,
    its images."""
    running = guest.virsh("domstate").strip() != "shut off"
    if running and re.search(r"Operation:\s+Backup", guest.virsh("domjobinfo")):
        xml = guest.virsh("backup-dumpxml")
        (socket,) = re.findall(r"socket='([^']*)'", xml)
        exports = re.findall(r"exportname='([^']*)'", xml)
        return {name: (f"nbd+unix:///{name}?socket={socket}", "raw") for name in exports}
    found: dict[str, tuple[Path | str, str]] = {}
    for line in guest.virsh("domblklist").strip().splitlines():
        target, path = line.split(maxsplit=1)
        image = Path(path.strip())
        kind = "qcow2" if image.suffix in (".qcow2", ".overlay") else "raw"
        found[target] = (image, kind)
        if running:
            info = _info(guest.processes, image, kind)
            found[target] = (Path(info["full-backing-filename"]), info["backing-filename-format"])
    return found


def _info(processes: Processes, path: Path, kind: str) -> dict[str, str]:
    argv = ["qemu-img", "info", "-U", "--output=json", "-f", kind, str(path)]
    document: dict[str, str] = json.loads(processes.run(argv, timeout_s=30).stdout)
    return document
