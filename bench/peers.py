"""The other programs, each as its own manual says, in directories of the measurement's own.

restic 0.14 and borg 1.2 are Debian's packages; bench/README.md says how to install them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PASSWORD = "a passphrase of the measurements"


@dataclass(frozen=True)
class Peer:
    """``make`` a new repository; ``save`` one file into it as its only snapshot; ``load`` that
    file into the present directory."""

    name: str
    make: Callable[[], None]
    save: Callable[[Path], None]
    load: Callable[[Path, Path], None]


def peers(directory: Path) -> list[Peer]:
    """Those that are installed."""
    known = {"restic": _restic, "borg": _borg}
    return [make(directory / name) for name, make in known.items() if shutil.which(name)]


def _restic(directory: Path) -> Peer:
    env = {"RESTIC_PASSWORD": _PASSWORD, "RESTIC_REPOSITORY": str(directory / "repository")}
    base = ("restic", "--quiet", "--cache-dir", str(directory / "cache"))

    def make() -> None:
        _empty(directory)
        _run([*base, "init"], env)

    def save(image: Path) -> None:
        _run([*base, "backup", str(image)], env)

    def load(image: Path, target: Path) -> None:
        _run([*base, "restore", "latest", "--target", str(target)], env)
        _sync(target / image.relative_to("/"))

    return Peer("restic", make, save, load)


def _borg(directory: Path) -> Peer:
    repository = str(directory / "repository")
    env = {
        "BORG_PASSPHRASE": _PASSWORD,
        "BORG_BASE_DIR": str(directory / "base"),
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }

    def make() -> None:
        _empty(directory)
        _run(["borg", "init", "--encryption=repokey-blake2", repository], env)

    def save(image: Path) -> None:
        argv = ["borg", "create", "--sparse", "--compression=zstd,1", f"{repository}::one"]
        _run([*argv, str(image)], env)

    def load(image: Path, target: Path) -> None:
        _run(["borg", "extract", "--sparse", f"{repository}::one"], env, cwd=target)
        _sync(target / image.relative_to("/"))

    return Peer("borg", make, save, load)


def virtnbd(directory: Path) -> Peer | None:
    """virtnbdbackup saves machines, not images: one that is off is defined for the while. It does
    not compress unless it is asked to. ``None`` where it, or libvirtd, is not there."""
    name = "drvm-bench"
    answers = ["virsh", "-c", "qemu:///system", "version"]
    if not (shutil.which("virtnbdbackup") and shutil.which("virsh")):
        return None
    if subprocess.run(answers, capture_output=True, check=False).returncode:
        return None
    image = directory / "disk.qcow2"
    virsh = ["virsh", "-q", "-c", "qemu:///system"]

    def make() -> None:
        _empty(directory)

    def save(source: Path) -> None:
        _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(image)])
        definition = directory / "domain.xml"
        definition.write_text(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='qcow2'/><source file='{image}'/>"
            "<target dev='vda' bus='virtio'/></disk></devices></domain>"
        )
        _run([*virsh, "define", str(definition)])
        try:
            saved = str(directory / "saved")
            _run(["virtnbdbackup", "-q", "-d", name, "-l", "copy", "-o", saved])
        finally:
            _run([*virsh, "undefine", name])

    def load(_: Path, target: Path) -> None:
        argv = ["virtnbdrestore", "-i", str(directory / "saved"), "-o", str(target)]
        _run(argv, cwd=directory)
        _sync(target / image.name)

    return Peer("virtnbdrestore", make, save, load)


def copy_sparse(image: Path, target: Path) -> None:
    """What a restore can't be faster than: ``cp`` of the image itself."""
    _run(["cp", "--sparse=always", str(image), str(target / image.name)])
    _sync(target / image.name)


def _sync(path: Path) -> None:
    """drvm's restore ends when the image is durable; so shall the others."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _run(argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    """Raises with what it printed where it fails."""
    done = subprocess.run(
        argv,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[:3])} failed: {done.stdout[-2000:]}")
