"""A machine's memory, captured with its disks in one snapshot of libvirt's.

libvirtd writes it to a file while the guest runs, pauses the guest for the rest and for the disks,
and goes on with all that where its client is killed. Measured: ``docs/adr/043-memory.md``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from drvm.core.errors import CaptureError, HostError, OutOfSpace
from drvm.core.units import format_bytes
from drvm.host.model import Domain
from drvm.snapshot import domainxml
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.frozen import ChangeGuard, FrozenImage
from drvm.snapshot.journal import Entry
from drvm.snapshot.memoryend import end_snapshot
from drvm.snapshot.parts import Parts
from drvm.snapshot.reading import Reading
from drvm.snapshot.space import SpaceWatch, allocated_bytes, free_bytes

_LIMIT_S = 1800.0
_TIMES_ITS_SIZE = 2
"""Pages that the guest changes meanwhile are written once more."""
_HOST_CARDS = frozenset({"hostdev", "vdpa", "vhostuser"})
_NOT_MOVABLE = {
    "hostdev": "a device of the host is passed through to it",
    "filesystem": "a directory of the host is shared with it",
    "shmem": "it shares memory with others",
    "tpm": "the state of its TPM can't be had at the same instant",
    "memory": "it has memory devices",
}
_HINT = "back it up without --memory"


def refuse(domain: Domain, request: CaptureRequest) -> None:
    """Where the memory can't be captured, or would not be of use. Raises ``CaptureError`` with
    every reason."""
    found = domainxml.parse(domain.xml())
    problems = [
        words for tag, words in _NOT_MOVABLE.items() if found.find(f"./devices/{tag}") is not None
    ]
    if any(card.get("type") in _HOST_CARDS for card in found.iterfind("./devices/interface")):
        problems.append("it has a network card of the host's")
    cpu = found.find("cpu")
    if cpu is not None and cpu.get("migratable") == "off":
        problems.append("its processor is set to be not migratable")
    targets = {target.get("dev", "") for target in found.iterfind("./devices/disk/target")}
    for target in sorted(targets & request.exclude_disks):
        problems.append(f"disk {target} would be left out, and the guest goes on with all it had")
    if request.require_filesystem:
        problems.append("no file system is frozen then, and its policy asks for that")
    if problems:
        raise CaptureError(
            f"the memory of {domain.name} can't be captured: {'; '.join(problems)}", hint=_HINT
        )


def require_room(domain: Domain, entry: Entry, reserve_bytes: int) -> None:
    """Before anything is made. Raises ``OutOfSpace``."""
    directory = Path(entry.memory).parent
    try:
        free = free_bytes(directory)
    except OSError as problem:
        raise CaptureError(f"{directory} can't be looked at: {problem.strerror}") from None
    needed = _size_bytes(domainxml.parse(domain.xml())) + reserve_bytes
    if free < needed:
        raise OutOfSpace(
            f"{directory} has {format_bytes(free)} left, and the memory of {domain.name} needs "
            f"{format_bytes(needed)} with what is kept in reserve",
            hint=f"make room there, or {_HINT}",
        )


@contextlib.contextmanager
def watched(parts: Parts, domain: Domain, entry: Entry) -> Iterator[None]:
    """Around the call that takes the snapshot: it is ended where room gets short, or where the
    guest changes its memory faster than it is written. Raises ``OutOfSpace`` then."""
    path, clock = Path(entry.memory), parts.clock
    most_bytes = _TIMES_ITS_SIZE * _size_bytes(domainxml.parse(domain.xml()))
    start_s = clock.monotonic_s()

    def trouble() -> str:
        parts.heed()
        if allocated_bytes(path) > most_bytes or clock.monotonic_s() - start_s > _LIMIT_S:
            return "the guest changes its memory faster than it can be written"
        return parts.room().shortage(entry)

    def release() -> tuple[str, ...]:
        end_snapshot(domain, entry, clock)
        return ()

    with SpaceWatch(domain.name, trouble, release):
        yield


def stored(parts: Parts, entry: Entry, reading: Reading) -> FrozenImage:
    """What libvirtd wrote, to be read."""
    path = Path(entry.memory)
    try:
        size_bytes = path.stat().st_size
    except OSError as problem:
        raise CaptureError(f"{path} can't be read: {problem.strerror}") from None
    info = replace(parts.images.info(path, "raw"), virtual_size_bytes=size_bytes)
    return FrozenImage(
        "memory",
        info,
        ChangeGuard([path], parts.clock),
        reading=reading,
        socket=None,
        method="full-read",
    )


def _size_bytes(domain: Element) -> int:
    """libvirt writes a live XML's ``<memory>`` in KiB."""
    text = (domain.findtext("memory") or "").strip()
    if not (text.isascii() and text.isdigit()):
        raise HostError("libvirt does not say how much memory the machine has")
    return int(text) * 1024
