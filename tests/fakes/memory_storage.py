"""Storage pools in memory: of files, or of block devices that hold what they held."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

from drvm.core.errors import HostError
from drvm.host.storage import Hole, Piece, Volume

EXTENT_BYTES = 4 * 1024 * 1024
_OLD = b"\xaa"


@dataclass
class MemoryStorage:
    """``pools``: name -> volumes; ``root``: where their files are. ``block``: sizes are whole
    extents, and what is new is not empty. ``before`` is called with each operation and its
    arguments, and may raise."""

    pools: dict[str, dict[str, bytearray]] = field(default_factory=lambda: {"default": {}})
    block: bool = False
    root: str = "/pools/default"
    before: Callable[..., None] = lambda *_: None

    def names(self, pool: str) -> frozenset[str]:
        self.before("names", pool)
        return frozenset(self.pools[pool])

    def volume(self, pool: str, name: str) -> Volume | None:
        data = self.pools[pool].get(name)
        if data is None:
            return None
        path = f"/dev/{pool}/{name}" if self.block else f"{self.root}/{name}"
        return Volume(name, path, not self.block, len(data), len(data))

    def create(self, pool: str, name: str, size_bytes: int) -> Volume:
        self.before("create", pool, name)
        if name in self.pools[pool]:
            raise HostError(f"storage volume {name!r} exists already")
        whole = -(-size_bytes // EXTENT_BYTES) * EXTENT_BYTES if self.block else size_bytes
        self.pools[pool][name] = bytearray(_OLD * whole if self.block else whole)
        made = self.volume(pool, name)
        assert made is not None
        return made

    def upload(
        self, pool: str, name: str, length: int, pieces: Iterable[Piece], *, offset: int = 0
    ) -> None:
        self.before("upload", pool, name)
        at = offset
        data = self._held(pool, name)
        if offset + length > len(data):
            if self.block:
                raise HostError("no space left")
            data.extend(bytes(offset + length - len(data)))
        for piece in pieces:
            if isinstance(piece, Hole) and not self.block:  # as libvirt: moves on, and ends there
                at += piece.length
                data[at:] = b""
                data.extend(bytes(at - len(data)))
                continue
            new = bytes(piece.length) if isinstance(piece, Hole) else bytes(piece)
            data[at : at + len(new)] = new
            at += len(new)
        assert at == offset + length <= len(data)

    def download(
        self, pool: str, name: str, length: int, *, offset: int = 0
    ) -> Generator[Piece, None, None]:
        self.before("download", pool, name)
        data = bytes(self._held(pool, name)[offset : offset + length])
        for start in range(0, len(data), 1 << 20):
            part = data[start : start + (1 << 20)]
            yield part if any(part) else Hole(len(part))

    def remove(self, pool: str, name: str) -> None:
        self.before("remove", pool, name)
        self.pools[pool].pop(name, None)

    def _held(self, pool: str, name: str) -> bytearray:
        if name not in self.pools[pool]:
            raise HostError(f"no storage volume {name!r}")
        return self.pools[pool][name]
