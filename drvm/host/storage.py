"""Storage pools of a host, which may be another machine: volumes are made, filled, read and removed
through libvirt alone. No libvirt type leaves this room."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Volume:
    """``path``: as its host sees it. ``is_file``: else a block device. ``size_bytes``: how many
    bytes the file or device has; ``allocated_bytes``: how many of them take room."""

    name: str
    path: str
    is_file: bool
    size_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class Hole:
    """So many bytes that read as zeroes, and take no room where there is a file to have holes."""

    length: int


Piece = bytes | memoryview | Hole
"""The bytes of a volume come and go as pieces, in their order. What a memoryview holds may change
when the next piece is asked for."""


class Storage(Protocol):
    """Of one host. Raises ``HostError``, and ``HostUnreachable`` for a connection that is lost or
    silent: a call then may or may not have been done. Names are checked by the caller."""

    def names(self, pool: str) -> frozenset[str]:
        """Of all volumes there, after libvirt has looked anew; while it makes large ones there, of
        those that it knows."""
        ...

    def volume(self, pool: str, name: str) -> Volume | None:
        """``None`` where there is none of that name."""
        ...

    def create(self, pool: str, name: str, size_bytes: int) -> Volume:
        """A new volume of plain bytes. A file reads as zeroes; a device holds anything. Its
        size may be rounded up. Raises ``HostError`` where there is one of that name."""
        ...

    def upload(
        self, pool: str, name: str, length: int, pieces: Iterable[Piece], *, offset: int = 0
    ) -> None:
        """``length`` bytes from ``offset`` on, which ``pieces`` make up in full. Other bytes stay
        as they are, but a file may end behind a hole until the next piece comes, and a hole changes
        nothing that is there: of a file that is not new, zeroes are written. Raises what ``pieces``
        raises; an error or a crash leaves some of it written."""
        ...

    def download(
        self, pool: str, name: str, length: int, *, offset: int = 0
    ) -> Generator[Piece, None, None]:
        """``length`` bytes from ``offset`` on, or fewer where the volume ends. Close it if it is
        left early."""
        ...

    def remove(self, pool: str, name: str) -> None:
        """No error if it is gone already. Whoever has it open keeps what he has open."""
        ...
