"""Names: of devices, as the guest's definition and the appliance call them; of files; and what is
safe to make of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.core.errors import UsageError

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
_PLACE = re.compile(rb"((?:btrfsvol:)?/dev/[^:]+):(/.*)", re.DOTALL)
_APPLIANCES = re.compile(rb"/dev/sd([a-z]{1,2})([0-9]*)(?![a-z0-9])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A file. ``device``: on that file system alone; ``None``: as the guest sees it. ``path`` is
    absolute, without ``.`` and ``..``."""

    device: bytes | None
    path: bytes

    @property
    def name(self) -> bytes:
        """Empty for the root."""
        return self.path.rpartition(b"/")[2]

    def __str__(self) -> str:
        shown = shown_name(self.path)
        return shown if self.device is None else f"{shown_name(self.device)}:{shown}"


def parse_place(text: bytes) -> Place:
    """``/etc/hosts``, ``/dev/vda1:/etc/hosts``. Raises ``UsageError``."""
    found = _PLACE.fullmatch(text)
    device, path = found.groups() if found is not None else (None, text)
    if not path.startswith(b"/") or b"\0" in text:
        raise UsageError(
            f"{shown_name(text)!r} is no path in a guest",
            hint="paths begin with /, as /etc/hosts or /dev/vda1:/etc/hosts",
        )
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(
            f"{shown_name(text)!r} has a .. in it", hint="name the file by its own path"
        )
    if len(path) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise UsageError("the path is longer than any that Linux knows")
    return Place(device, b"/" + b"/".join(parts))


def shown_name(name: bytes) -> str:
    """For people and JSON: bytes that are no UTF-8 are written out as ``\\xe9``."""
    return name.decode(errors="backslashreplace")


def appliance_device(device: bytes, targets: Sequence[str]) -> bytes:
    """``/dev/vda1`` -> ``/dev/sda1``, where vda is the first of ``targets``; other devices, such as
    logical volumes, have the same name everywhere."""
    for index, target in enumerate(targets):
        own = re.escape(target.encode()) + (b"p" if target[-1].isdigit() else b"")
        pattern = rb"((?:btrfsvol:)?)/dev/(?:" + re.escape(target.encode()) + rb"|" + own
        found = re.fullmatch(pattern + rb"([0-9]+))(/.*)?", device, re.DOTALL)
        if found is not None:
            prefix, number, rest = (group or b"" for group in found.groups())
            return prefix + b"/dev/sd" + _letters(index) + number + rest
    return device


def guest_device(device: bytes, targets: Sequence[str]) -> bytes:
    """The other way: what people see. A device of no disk that we gave stays what it is."""

    def name(found: re.Match[bytes]) -> bytes:
        index = _index(found[1])
        if index >= len(targets):
            return found[0]
        target, number = targets[index], found[2]
        # as the kernel does: vda1, but nvme0n1p1
        between = "p" if number and target[-1].isdigit() else ""
        return b"/dev/" + target.encode() + between.encode() + number

    return _APPLIANCES.sub(name, device)


def _letters(index: int) -> bytes:
    """0 -> a, 25 -> z, 26 -> aa, as Linux counts disks."""
    last = bytes([ord("a") + index % 26])
    return last if index < 26 else _letters(index // 26 - 1) + last


def _index(letters: bytes) -> int:
    index = 0
    for letter in letters:
        index = index * 26 + letter - ord("a") + 1
    return index - 1


def is_file_name(name: bytes) -> bool:
    """Whether it can be one name in a directory, and nothing more."""
    plain = b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    return plain and 0 < len(name) <= MAX_NAME_BYTES


def stays_inside(target: bytes, depth: int) -> bool:
    """Whether a symbolic link can't lead out of a tree, whatever other such links are in it.

    ``depth``: of the directory that it is in, 0 for the tree's root. ``..`` may only lead the way:
    directories made by us are what their names say, so these count exactly; behind a name, which
    may be a link, it could go up from anywhere.
    """
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    relative = bool(target) and not target.startswith(b"/") and b"\0" not in target
    return relative and ups <= depth and b".." not in parts[ups:]
