"""A storage pool of another host: files in a directory, as large as a disk may claim to be."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import HostError
from drvm.core.units import MIB
from drvm.host.storage import Hole, Piece, Volume


@dataclass
class FileStorage:
    """One pool, of any name, in ``root``."""

    root: Path

    def names(self, pool: str) -> frozenset[str]:
        return frozenset(path.name for path in self.root.iterdir())

    def volume(self, pool: str, name: str) -> Volume | None:
        path = self.root / name
        if not path.exists():
            return None
        status = path.stat()
        return Volume(name, str(path), True, status.st_size, status.st_blocks * 512)

    def create(self, pool: str, name: str, size_bytes: int) -> Volume:
        try:
            with (self.root / name).open("xb") as stream:
                os.truncate(stream.fileno(), size_bytes)
        except OSError as problem:
            (self.root / name).unlink(missing_ok=True)
            raise HostError(f"volume {name}: {problem.strerror}") from None
        made = self.volume(pool, name)
        assert made is not None
        return made

    def upload(
        self, pool: str, name: str, length: int, pieces: Iterable[Piece], *, offset: int = 0
    ) -> None:
        at = offset
        with (self.root / name).open("r+b") as stream:
            for piece in pieces:
                if isinstance(piece, Hole):
                    at += piece.length
                else:
                    os.pwrite(stream.fileno(), piece, at)
                    at += len(piece)
        assert at == offset + length

    def download(
        self, pool: str, name: str, length: int, *, offset: int = 0
    ) -> Generator[Piece, None, None]:
        with (self.root / name).open("rb") as stream:
            stream.seek(offset)
            while length and (data := stream.read(min(length, MIB))):
                length -= len(data)
                yield data

    def remove(self, pool: str, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
