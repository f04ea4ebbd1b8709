"""All file systems of a point's disks as directories of this host, read-only:
``python -m drvm.restore.guestfiles.shown PLACE SOCKET EXPORT...``

For programs that understand nothing but files. Each file system is mounted in the appliance, by
itself and not as the guest would: so nothing is left out that no ``fstab`` names. They are at
``PLACE/vda1`` and so on, until PLACE is unmounted; what could not be mounted is said on stderr, a
line for each. A process of its own, as ``inside`` is; whoever starts it gives it mounts
of its own, so that none is left when it is killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from drvm.restore.guestfiles.appliance import CACHE
from drvm.restore.guestfiles.inside import mount_somehow
from drvm.restore.guestfiles.libguestfs import Guestfs, GuestfsError
from drvm.restore.guestfiles.names import guest_device, shown_name
from drvm.restore.guestfiles.view import NO_FILES

NOTHING_MOUNTED = 3
_ALL_USERS = b"allow_other"
_NO_WORDS = frozenset({"", "unknown", "swap", "LVM2_member", "linux_raid_member"})
"""Types of what holds no files of its own: nothing is left out by leaving it out."""


def main(place: Path, socket: Path, exports: Sequence[str]) -> int:
    guestfs = _launched(place, socket, exports)
    mounted = 0
    for found in guestfs.file_systems():
        kind, device = shown_name(found.type), guest_device(found.device, exports)
        if kind in NO_FILES:
            if kind not in _NO_WORDS:
                _say(f"{shown_name(device)} was left out: {kind}")
            continue
        at = b"/" + device.removeprefix(b"/dev/").replace(b"/", b"-")
        try:
            guestfs.make_mount_point(at)
            mount_somehow(guestfs, found.device, at)
            mounted += 1
        except GuestfsError as error:
            _say(f"{shown_name(device)} was left out: {shown_name(str(error).encode())}")
    if not mounted:
        _say("no file system was found that could be mounted")
        return NOTHING_MOUNTED
    guestfs.show_at(os.fsencode(place), _ALL_USERS if os.geteuid() == 0 else b"")
    guestfs.close()
    return 0


def _launched(place: Path, socket: Path, exports: Sequence[str]) -> Guestfs:
    """With KVM where that boots something."""
    ways = (False, True) if os.access("/dev/kvm", os.R_OK | os.W_OK) else (True,)
    for emulated in ways:
        guestfs = Guestfs(
            scratch=os.fsencode(place.parent), cache=os.fsencode(CACHE), emulated=emulated
        )
        try:
            for export in exports:
                guestfs.add_disk(os.fsencode(socket), export.encode())
            guestfs.launch()
            return guestfs
        except GuestfsError:
            guestfs.close()
            if emulated:
                raise
    raise AssertionError("the last way returns or raises")


def _say(line: str) -> None:
    os.write(2, line.encode(errors="replace") + b"\n")


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
    except GuestfsError as problem:
        sys.exit(str(problem))
