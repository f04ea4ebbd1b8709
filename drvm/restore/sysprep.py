"""What is a clone's own inside its disks too, by virt-sysprep on the restored images.

virt-sysprep boots a small appliance over the images and touches nothing else; what a hostile guest
has on its disks meets the appliance's kernel, not the host's. It says itself that it is for
machines that are off, which holds: the clone is not defined yet.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from drvm.core.errors import ProcessFailed, RestoreError, UsageError
from drvm.core.process import Processes, small_environment
from drvm.core.text import printable
from drvm.restore.targets.images import PlannedImage

PROGRAM = "virt-sysprep"
DEFAULT = (
    "customize",
    "dhcp-client-state",
    "machine-id",
    "net-hwaddr",
    "ssh-hostkeys",
    "udev-persistent-net",
)
"""What must not be the same in two machines, and no account, key or file of a person's.
``customize`` alone gives a new random seed."""

_INSTALL = "install it (Debian: apt install guestfs-tools), or leave out --sysprep"
_OPERATION = re.compile(r"[a-z][a-z0-9-]{1,40}", re.ASCII)
_TIMEOUT_S = 1800.0
"""Emulated, with the appliance built for the first time; 40 s are usual."""
_MAX_OUTPUT_BYTES = 256 * 1024


def chosen_operations(text: str) -> tuple[str, ...]:
    """``default`` or names with commas between. Raises ``UsageError``; which operations there are
    is virt-sysprep's to say."""
    if text == "default":
        return DEFAULT
    names = tuple(text.split(","))
    if bad := [name for name in names if not _OPERATION.fullmatch(name)]:
        raise UsageError(
            f"--sysprep: {bad[0]!r} is no operation",
            hint=f"names with commas between, as {PROGRAM} --list-operations tells them",
        )
    return names


def sysprep_problems(operations: Sequence[str], images: Iterable[PlannedImage]) -> Iterator[str]:
    if not operations:
        return
    if shutil.which(PROGRAM) is None:
        yield f"--sysprep needs {PROGRAM}, which is not there: {_INSTALL}"
    for image in images:
        if not image.is_file:
            yield (
                f"--sysprep works on image files of this machine, and disk {image.disk.target} "
                f"goes to {image.path}: run drvm there, or leave out --sysprep"
            )


def run_sysprep(
    processes: Processes,
    operations: Sequence[str],
    images: Sequence[tuple[Path, str]],
    *,
    emulated: bool,
) -> None:
    """``images``: (path, format) of one machine that nobody uses. ``emulated``: without KVM.

    Raises ``RestoreError``; then, and after a crash, the images may be changed in part: they are
    good for nothing but to be restored anew. It ends with us, also if we are killed.
    """
    argv = ["setpriv", "--pdeathsig", "SIGTERM", PROGRAM, "--quiet", "--no-network"]
    argv += ["--operations", ",".join(operations)]
    for path, kind in images:
        argv += ["--format", kind, "--add", str(path)]
    extra = {"LIBGUESTFS_BACKEND": "direct", "HOME": "/nonexistent"}
    if emulated:
        extra["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    try:
        processes.run(
            argv,
            timeout_s=_TIMEOUT_S,
            env=small_environment(extra),
            max_output_bytes=_MAX_OUTPUT_BYTES,
        )
    except ProcessFailed as error:
        words = " ".join(error.message.partition("If reporting bugs")[0].split())
        raise RestoreError(
            f"the clone could not be made its own inside: {printable(words, 600)}",
            hint="clone without --sysprep, or with other operations: --sysprep=machine-id",
        ) from None
