"""Points that are proven as they are taken: restored, and compared with the frozen images."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from drvm.core.errors import ProcessFailed
from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import NoProgress
from drvm.repository.manifest import Manifest
from drvm.restore.plan import plan_folder
from drvm.restore.run import run_folder
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import BackupOptions, take_point
from tests.capturing import assert_frozen_file_system, file_digest, image_digest, raw_copy
from tests.guests import Guest

Look = Callable[[str, Path], None]
"""Is shown each restored disk: its target, and a raw image that is removed afterwards."""


def proven_point(
    wiring: Wiring,
    guest: Guest,
    scratch: Path,
    options: BackupOptions | None = None,
    look: Look = lambda target, raw: None,
) -> Manifest:
    """A point of the guest, whose restored disks are byte for byte the frozen images: those were
    looked at by other means while they were frozen. Where the point is said to be consistent, so
    are its file systems, without a replay of their journals."""
    processes = SystemProcesses()
    frozen: dict[str, str] = {}
    copies = scratch / "copies"

    def trace(step: str) -> None:
        if step == "backup-begun" and _stands_still(guest):
            _copy_images(guest, copies)
            assert _stands_still(guest), "it was thawed under our eyes"
        if step == "reading":
            images = own_images(guest, copies) if copies.is_dir() else frozen_images(guest)
            for target, (path, kind) in images.items():
                frozen[target] = image_digest(path, kind, scratch, processes)

    taken = take_point(wiring, guest.name, options or BackupOptions(), NoProgress(), trace)
    shutil.rmtree(copies, ignore_errors=True)
    assert taken.cleanup is None
    manifest = taken.point.manifest

    def look_closely(target: str, raw: Path) -> None:
        if manifest.consistency == "filesystem" and "frozen" not in manifest.guest:
            assert_frozen_file_system(raw)
        look(target, raw)

    restored = restored_digests(wiring, manifest, scratch, look_closely)
    assert restored == {target: frozen[target] for target in restored}
    return manifest


def restored_digests(
    wiring: Wiring, manifest: Manifest, scratch: Path, look: Look = lambda target, raw: None
) -> dict[str, str]:
    """BLAKE3 of what the guest sees of each disk, restored to a folder."""
    out, processes = scratch / manifest.id, SystemProcesses()
    images = plan_folder(manifest, out, None, None)
    run_folder(wiring.repository(), manifest, images, out, wiring.restorer(), NoProgress())
    found = {}
    for image in images:
        with raw_copy(image.path, image.format, scratch, processes) as raw:
            look(image.disk.target, raw)
            found[image.disk.target] = file_digest(raw)
    shutil.rmtree(out)
    return found


def _stands_still(guest: Guest) -> bool:
    with contextlib.suppress(ProcessFailed):
        return bool(guest.agent("guest-fsfreeze-status") == "frozen")
    return False


def _copy_images(guest: Guest, directory: Path) -> None:
    """What a frozen guest has written is in its own images. Sparse copies are made in a moment."""
    directory.mkdir()
    for path in guest.disks.values():
        guest.processes.run(["cp", "--sparse=auto", str(path), str(directory)], timeout_s=30)


def own_images(guest: Guest, directory: Path) -> dict[str, tuple[Path, str]]:
    """Target -> (image, format) of copies of the guest's own images in ``directory``."""
    return {target: (directory / path.name, _kind(path)) for target, path in guest.disks.items()}


def _kind(path: Path) -> str:
    return "qcow2" if path.suffix in (".qcow2", ".overlay") else "raw"


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
        found[target] = (image, _kind(image))
        if running:
            info = _info(guest.processes, image, _kind(image))
            found[target] = (Path(info["full-backing-filename"]), info["backing-filename-format"])
    return found


def _info(processes: Processes, path: Path, kind: str) -> dict[str, str]:
    argv = ["qemu-img", "info", "-U", "--output=json", "-f", kind, str(path)]
    document: dict[str, str] = json.loads(processes.run(argv, timeout_s=30).stdout)
    return document
