"""Shows a point's files and runs a scanner: ``scan PLACE SOCKET COUNT EXPORT... PROGRAM ...``

Process 1 of a PID namespace, with mounts and a network of its own: when it ends or is killed, the
kernel ends the appliance and the scanner, and the mount goes. Its exit code is the scanner's; what
could not be scanned stands on stderr, before the scanner's own words.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from drvm.core.process import Child, Processes, SystemProcesses
from drvm.drill.checks.malware import DISKS, NOT_MOUNTED
from drvm.restore.served.server import python_path

_SHOW = (sys.executable, "-P", "-m", "drvm.restore.guestfiles.shown")
_MOUNT_S = 900.0
"""The appliance may be emulated, and built for the first time."""
_END_S = 30.0
_POLL_S = 0.2
_TAIL_BYTES = 2000
_WEEK_S = 7 * 86400.0
"""Whoever started us ends us sooner."""


def scanner_argv(run: Sequence[str], place: Path) -> list[str]:
    argv = [word.replace(DISKS, str(place)) for word in run]
    if os.geteuid() != 0:
        return argv
    user = pwd.getpwnam("nobody")
    drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*drop, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *argv]


def main(arguments: Sequence[str]) -> int:
    place, socket, count = Path(arguments[0]), arguments[1], int(arguments[2])
    exports, run = arguments[3 : 3 + count], arguments[3 + count :]
    processes, log = SystemProcesses(), place.with_name("scanned.log")
    env = {"HOME": "/nonexistent", **python_path()}
    showing = processes.spawn([*_SHOW, str(place), socket, *exports], env=env, log=log)
    is_shown = _is_shown(showing, place)
    os.write(2, log.read_bytes()[-_TAIL_BYTES:])
    if not is_shown:
        return NOT_MOUNTED
    try:
        code = _scan(processes, scanner_argv(run, place))
        if code == 0 and not still_shown(showing, place):
            os.write(2, b"the file systems had gone when the scan was over\n")
            return NOT_MOUNTED
        return code
    finally:  # in good order, as libguestfs then removes what it made in /tmp
        with contextlib.suppress(ProcessFailed):
            processes.run(["umount", str(place)], timeout_s=_END_S)
            showing.wait(_END_S)


def _scan(processes: Processes, argv: Sequence[str]) -> int:
    try:
        said = processes.run(argv, timeout_s=_WEEK_S)
    except ProcessFailed as problem:
        os.write(1, problem.stdout)
        os.write(2, problem.stderr if problem.code is not None else problem.message.encode())
        return 1 if problem.code is None else problem.code & 0xFF or 1
    os.write(1, said.stdout)
    return 0


def still_shown(showing: Child, place: Path) -> bool:
    """A file system that ends the appliance must not hide what is on it: many scanners pass over
    what they can't read, and then find nothing."""
    try:
        if showing.returncode() is not None or not place.is_mount():
            return False
        for shown in place.iterdir():
            next(shown.iterdir(), None)
    except OSError:
        return False
    return True


def _is_shown(showing: Child, place: Path) -> bool:
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + _MOUNT_S
    while clock.monotonic_s() < deadline_s:
        if place.is_mount():
            return True
        if showing.wait(_POLL_S):
            return False
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
