"""Writing blobs into metadata packs: disk-map nodes, domain XML, NVRAM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drvm.chunker import frames
from drvm.repository.crypto import Sealer
from drvm.repository.pack import PackBuilder, SealedPack
from drvm.repository.packs import BlobRef


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob of this session: its pack may not be finished, and so may not have a name yet."""

    serial: int
    number: int


class BlobWriter:
    """Fills metadata packs one after the other; hands each to ``emit`` when it is full."""

    def __init__(self, sealer: Sealer, emit: Callable[[SealedPack], None]) -> None:
        self._sealer = sealer
        self._emit = emit
        self._builder = PackBuilder(sealer, "meta")
        self._names: list[bytes] = []

    def add(self, *columns: bytes) -> NewBlob:
        """A blob of these bytes; of several where their nature differs."""
        codec, payload = frames.encode_columns(columns, frames.METADATA_LEVEL)
        return self._add(codec, payload, sum(map(len, columns)))

    def add_node(
        self, encode: Callable[[Callable[[NewBlob | BlobRef], bytes | None]], bytes]
    ) -> NewBlob:
        """Add a blob that refers to others. ``encode`` gets a function that tells the name of a
        reference's pack, or ``None`` for "the pack that this blob is in"."""
        plain = encode(self._name_of)
        codec, payload = frames.encode(plain, frames.METADATA_LEVEL)
        if not self._builder.has_room(len(payload)):
            self._rotate()  # what was "this pack" has a name now
            plain = encode(self._name_of)
            codec, payload = frames.encode(plain, frames.METADATA_LEVEL)
        return self._add(codec, payload, len(plain))

    def finish(self) -> None:
        """Every blob has a named pack when this returns."""
        if len(self._builder):
            self._rotate()

    def packs(self) -> list[bytes]:
        """Those that are finished."""
        return list(self._names)

    def ref(self, blob: NewBlob) -> BlobRef:
        """Only after ``finish``."""
        return BlobRef(self._names[blob.serial], blob.number)

    def _add(self, codec: int, payload: bytes, plain_bytes: int) -> NewBlob:
        if not self._builder.has_room(len(payload)):
            self._rotate()
        return NewBlob(len(self._names), self._builder.add(codec, payload, plain_bytes))

    def _name_of(self, ref: NewBlob | BlobRef) -> bytes | None:
        if isinstance(ref, BlobRef):
            return ref.pack
        return self._names[ref.serial] if ref.serial < len(self._names) else None

    def _rotate(self) -> None:
        pack = self._builder.finish()
        self._builder = PackBuilder(self._sealer, "meta")
        self._names.append(pack.name)
        self._emit(pack)
