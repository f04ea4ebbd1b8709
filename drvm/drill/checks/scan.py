"""Mounts a point's disks and runs a scanner: ``scan PLACE COUNT URI... PROGRAM ARGUMENT...``

Process 1 of a PID namespace, with mounts and a network of its own: when it ends or is killed, the
kernel ends guestmount, its appliance and the scanner, and the mount goes. Its exit code is the
scanner's.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from drvm.core.process import Child, SystemProcesses
from drvm.drill.checks.malware import DISKS, NOT_MOUNTED, PROGRAM

_MOUNT_S = 600.0
"""The appliance may be emulated, and built for the first time."""
_POLL_S = 0.2
_TAIL_BYTES = 2000
_WEEK_S = 7 * 86400.0
"""Whoever started us ends us sooner."""


def mount_argv(uris: Sequence[str], place: Path) -> list[str]:
    argv = [PROGRAM, "--no-fork", "--ro", "--inspector", "-o", "allow_other"]
    for uri in uris:
        argv += ["--format=raw", "--add", uri]
    return [*argv, str(place)]


def scanner_argv(run: Sequence[str], place: Path) -> list[str]:
    argv = [word.replace(DISKS, str(place)) for word in run]
    if os.geteuid() != 0:
        return argv
    user = pwd.getpwnam("nobody")
    drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*drop, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *argv]


def main(arguments: Sequence[str]) -> int:
    place, count = Path(arguments[0]), int(arguments[1])
    uris, run = arguments[2 : 2 + count], arguments[2 + count :]
    processes, log = SystemProcesses(), place.with_name("scanned.log")
    env = {"LIBGUESTFS_BACKEND": "direct", "HOME": "/nonexistent", "TMPDIR": str(place.parent)}
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    mounting = processes.spawn(mount_argv(uris, place), env=env, log=log)
    if not _is_mounted(mounting, place):
        os.write(2, log.read_bytes()[-_TAIL_BYTES:])
        return NOT_MOUNTED
    try:
        said = processes.run(scanner_argv(run, place), timeout_s=_WEEK_S)
    except ProcessFailed as problem:
        os.write(1, problem.stdout)
        os.write(2, problem.stderr or problem.message.encode())
        return NOT_MOUNTED if problem.code is None else problem.code & 0xFF or 1
    os.write(1, said.stdout)
    return 0


def _is_mounted(mounting: Child, place: Path) -> bool:
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + _MOUNT_S
    while clock.monotonic_s() < deadline_s:
        if place.is_mount():
            return True
        if mounting.wait(_POLL_S):
            return False
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
