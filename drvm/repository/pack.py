"""Packs: frames, then two sealed tables, then a plain footer.

::

    frame 0 | frame 1 | ... | padding | sealed ids | sealed frame table | footer (144 bytes)

The pack's name is the SHA-256 of its footer, and the footer holds the digests of everything
before it: a name binds the content, anyone can check a pack without a key, and the fresh salt
makes every name unique, so none is ever used again. docs/FORMAT.md, "Packs".
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, Buffer, Ids, ids_from_bytes
from drvm.chunker.frames import FRAME_BLOCKS, FRAME_BYTES
from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository.crypto import SALT_BYTES, TAG_BYTES, ObjectCipher, Sealer
from drvm.repository.layout import FORMAT_VERSION, PACK_MAX_BLOCKS, PACK_MAX_BYTES

Kind = Literal["data", "meta"]

MAX_BLOB_BYTES = 32 * 1024 * 1024
TAIL_GUESS_BYTES = 64 * 1024
"""Reading this much of a pack's end gets its footer and, nearly always, its frame table."""

_MAGIC = b"drvmpack"
_KINDS: dict[Kind, int] = {"data": 1, "meta": 2}
_FOOTER = struct.Struct("<8sHBx4x32sQII32s32s16s")
FOOTER_BYTES = _FOOTER.size
_FRAMES, _IDS, _TABLE = 0, 1, 2  # nonce domains
_MAX_FRAMES = PACK_MAX_BLOCKS
_TABLES_RESERVE_BYTES = 2 * 1024 * 1024  # 1 MiB of ids, the frame table, the padding


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A finished pack, ready to be stored under its name."""

    name: bytes
    data: Buffer


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the frames lie. All arrays int64 with an entry per frame; offsets in bytes."""

    offset: npt.NDArray[np.int64]
    stored_bytes: npt.NDArray[np.int64]
    plain_bytes: npt.NDArray[np.int64]
    codec: npt.NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return 4 * self.offset.nbytes


Room = npt.NDArray[np.uint8]
"""Memory that a pack is built in."""


def make_room(size_bytes: int = PACK_MAX_BYTES) -> Room:
    """Page by page, so that it can be written past the page cache; by numpy, which asks the
    kernel for huge pages: 16 faults instead of 8192."""
    memory = np.empty(size_bytes + mmap.PAGESIZE, dtype=np.uint8)
    start = -memory.__array_interface__["data"][0] % mmap.PAGESIZE
    return memory[start : start + size_bytes]


class PackBuilder:
    """Collects frames until the pack is full. One thread at a time.

    The pack is built in ``room``, which its data is a view of: whoever gives one gives it to no
    other builder until that pack is stored. Fresh memory costs as much as sealing does.
    """

    def __init__(self, sealer: Sealer, kind: Kind, room: Room | None = None) -> None:
        self.kind: Kind = kind
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._sealer = sealer
        self._cipher = sealer.cipher(b"pack-" + kind.encode(), self._salt)
        self._room = make_room() if room is None else room
        self._table: list[tuple[int, int, int]] = []
        self._ids: list[bytes] = []
        self._blocks = 0
        self._finished = False
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._table)

    def has_room(self, payload_bytes: int, blocks: int = 0) -> bool:
        size = self.stored_bytes + payload_bytes + TAG_BYTES
        return not self._table or (
            size <= PACK_MAX_BYTES - _TABLES_RESERVE_BYTES
            and self._blocks + blocks <= PACK_MAX_BLOCKS
            and len(self._table) < _MAX_FRAMES
        )

    def add(
        self, codec: int, payload: bytes, plain_bytes: int, ids: bytes = b"", *, verify: bool = True
    ) -> int:
        """Seal a frame; returns its number. ``ids``: 16 bytes a block, data packs only.

        What was sealed is opened and compared before it counts: a bit that flips in memory
        here would otherwise be found on the day of the restore. Raises ``RepositoryError`` for
        more than a reader takes.
        """
        if self._finished:
            raise ValueError("the pack is finished")
        if plain_bytes > _largest(self.kind):
            raise RepositoryError(f"{plain_bytes} bytes at once, at most {_largest(self.kind)} fit")
        number, start = len(self._table), self.stored_bytes
        with self._piece(start, len(payload) + TAG_BYTES) as sealed:
            self._cipher.seal_into(_FRAMES, number, payload, sealed)
            if verify and self._cipher.open(_FRAMES, number, sealed) != payload:
                raise DamageFound("a frame changed in memory while it was sealed")
            self.stored_bytes += len(sealed)
        self._table.append((self.stored_bytes - start, plain_bytes, codec))
        self._ids.append(ids)
        self._blocks += len(ids) // ID_BYTES
        return number

    def blocks(self) -> tuple[Ids, npt.NDArray[np.int64]]:
        """(ids, ordinals) of all blocks so far, ascending."""
        counts = np.array([len(ids) // ID_BYTES for ids in self._ids], dtype=np.int64)
        return ids_from_bytes(b"".join(self._ids)), ordinals_of(counts)

    def finish(self) -> SealedPack:
        """Once: its tables have one nonce each."""
        if self._finished:
            raise ValueError("the pack is finished")
        self._finished = True
        padding = bytes(_padding(self.stored_bytes))
        body_bytes = self.stored_bytes + len(padding)
        ids = self._cipher.seal(_IDS, 0, b"".join(self._ids))
        columns = np.array(self._table, dtype="<u4").reshape(-1, 3).T
        plain = struct.pack("<I", len(self._table)) + columns.tobytes()
        table = self._cipher.seal(_TABLE, 0, zstandard.compress(plain, 9))
        with self._piece(self.stored_bytes, len(padding)) as end:
            end[:] = padding
        with self._piece(0, body_bytes) as body:
            body_blake3 = blake3(body).digest()
        footer = _FOOTER.pack(
            _MAGIC,
            FORMAT_VERSION,
            _KINDS[self.kind],
            self._salt,
            body_bytes,
            len(ids),
            len(table),
            body_blake3,
            (tables_sha256 := hashlib.sha256(ids + table).digest()),
            self._sealer.mark(b"pack", self._salt + body_blake3 + tables_sha256),
        )
        tail = ids + table + footer
        with self._piece(body_bytes, len(tail)) as end:
            end[:] = tail
        whole = self._piece(0, body_bytes + len(tail)).toreadonly()
        return SealedPack(hashlib.sha256(footer).digest(), whole)

    def _piece(self, start: int, length: int) -> memoryview:
        """So much of the room. It grows where the first frame alone is larger than any pack."""
        if start + length > len(self._room):
            larger = make_room(start + length)
            larger[: self.stored_bytes] = self._room[: self.stored_bytes]
            self._room = larger
        return self._room.data[start : start + length]


@dataclass(frozen=True, slots=True)
class Footer:
    kind: Kind
    salt: bytes
    body_bytes: int
    ids_bytes: int
    table_bytes: int
    body_blake3: bytes
    tables_sha256: bytes
    mark: bytes

    @property
    def pack_bytes(self) -> int:
        return self.body_bytes + self.ids_bytes + self.table_bytes + FOOTER_BYTES


def parse_footer(name: bytes, tail: bytes) -> Footer:
    """The footer at the end of ``tail``. Raises ``DamageFound`` unless it is the pack's own."""
    footer = tail[-FOOTER_BYTES:]
    if hashlib.sha256(footer).digest() != name or len(footer) != FOOTER_BYTES:
        raise DamageFound(f"pack {name.hex()} is damaged or was replaced by another")
    magic, version, kind, salt, body, ids, table, *sums = _FOOTER.unpack(footer)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise UnsupportedFormat(f"pack {name.hex()} has format version {version}")
    kinds: dict[int, Kind] = {number: text for text, number in _KINDS.items()}
    if kind not in kinds or max(body, ids, table) > 2 * MAX_BLOB_BYTES:
        raise DamageFound(f"pack {name.hex()} has an impossible footer")
    return Footer(kinds[kind], salt, body, ids, table, *sums)


class OpenPack:
    """A pack whose footer and frame table were read and authenticated. Immutable."""

    def __init__(self, sealer: Sealer, name: bytes, footer: Footer, sealed_table: bytes) -> None:
        self.name = name
        self.footer = footer
        self._cipher: ObjectCipher = sealer.cipher(b"pack-" + footer.kind.encode(), footer.salt)
        self._what = f"pack {name.hex()}"
        opened = self._cipher.open(_TABLE, 0, sealed_table, what=self._what)
        self.frames = _decode_table(opened, footer, self._what)

    def open_frame(self, number: int, sealed: Buffer) -> bytes:
        """The plain bytes of a frame. Raises ``DamageFound``."""
        what = f"{self._what}, frame {number}"
        payload = self._cipher.open(_FRAMES, number, sealed, what=what)
        try:
            return frames.decode(
                int(self.frames.codec[number]), payload, int(self.frames.plain_bytes[number])
            )
        except ValueError as error:
            raise DamageFound(f"{what} is damaged: {error}") from None

    def open_into(self, number: int, sealed: Buffer, room: memoryview) -> int:
        """The same at the start of ``room``; returns how many bytes. It must have that many."""
        what = f"{self._what}, frame {number}"
        payload = self._cipher.open(_FRAMES, number, sealed, what=what)
        length = int(self.frames.plain_bytes[number])
        try:
            frames.decode_into(int(self.frames.codec[number]), payload, room[:length])
        except ValueError as error:
            raise DamageFound(f"{what} is damaged: {error}") from None
        return length

    def ids(self, sealed_ids: bytes) -> tuple[Ids, npt.NDArray[np.int64]]:
        """(ids, ordinals) of all blocks of a data pack."""
        opened = self._cipher.open(_IDS, 0, sealed_ids, what=self._what)
        counts = self.frames.plain_bytes // BLOCK_BYTES
        if self.footer.kind != "data" or int(counts.sum()) * ID_BYTES != len(opened):
            raise DamageFound(f"{self._what} has another number of ids than blocks")
        ids = ids_from_bytes(opened)
        return ids, ordinals_of(counts)


def ordinals_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ordinals of all blocks of a pack, in order, from the number of each frame's blocks."""
    before = np.cumsum(counts) - counts
    first = np.arange(len(counts)) * FRAME_BLOCKS
    ordinals: npt.NDArray[np.int64] = np.arange(counts.sum()) + np.repeat(first - before, counts)
    return ordinals


def _decode_table(packed: bytes, footer: Footer, what: str) -> FrameTable:
    limit = 4 + 12 * _MAX_FRAMES
    try:
        plain = frames.decompress(packed, limit)
    except ValueError as error:
        raise DamageFound(f"{what} has a damaged frame table: {error}") from None
    (count,) = struct.unpack_from("<I", plain) if len(plain) >= 4 else (-1,)
    if count > _MAX_FRAMES or len(plain) != 4 + 12 * count:
        raise DamageFound(f"{what} has a damaged frame table")
    stored, plain_bytes, codec = (
        np.frombuffer(plain, dtype="<u4", offset=4).reshape(3, count).astype(np.int64)
    )
    fits = int(stored.sum()) <= footer.body_bytes and int(codec.max(initial=0)) <= 22
    fits &= int(plain_bytes.max(initial=0)) <= _largest(footer.kind)
    if footer.kind == "data":
        fits &= not (plain_bytes % BLOCK_BYTES).any()
        fits &= int(plain_bytes.sum()) <= PACK_MAX_BLOCKS * BLOCK_BYTES
    if not fits:
        raise DamageFound(f"{what} has an impossible frame table")
    return FrameTable(np.cumsum(stored) - stored, stored, plain_bytes, codec)


def _largest(kind: Kind) -> int:
    """The most plain bytes of a frame."""
    return FRAME_BYTES if kind == "data" else MAX_BLOB_BYTES


def _padding(size: int) -> int:
    """Zero bytes that blur how well the last frames compressed: up to 1/64 of the pack."""
    unit = max(4096, 1 << max(0, size.bit_length() - 7))
    return -size % unit
