"""Which packs of other hosts serve deduplication, and by what a host knows its own.

Every host holds the keys, so any of them can seal a pack whose id table lies, and whoever
deduplicates against it stores a reference to other bytes than it read. So a host marks what it
makes with a key that never leaves it, and believes the ids of others only after it has read,
decrypted and named the blocks itself, once. docs/adr/035-dedup-trust.md.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from blake3 import blake3

from drvm.chunker.blocks import BlockHasher, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import RepositoryError
from drvm.core.files import write_cached
from drvm.repository.index.hooks import SEGMENT_BLOCKS
from drvm.repository.index.tables import IdTables
from drvm.repository.packs import PackReader

DedupTrust = Literal["own", "verified", "repository"]

HOST_KEY_BYTES = 32
_GROUP = 8
"""Segments that are read together: 8 MiB of blocks, mostly one request."""
_GROUP_FRAMES = _GROUP * SEGMENT_BLOCKS // FRAME_BLOCKS
_WORDS = 16
"""A pack has at most 65536 frames: 8192 segments, 1024 groups, 16 words of 64 bits."""
_RECORD = struct.Struct(f"<8s?7x{_WORDS}Q16s")
_MAGIC = b"drvmtru1"
_KEPT = 4096


@dataclass(frozen=True, slots=True, repr=False)
class HostTrust:
    """``host_key``: 32 bytes that only this host knows; without any, nothing that was there before
    is its own."""

    rule: DedupTrust = "verified"
    host_key: bytes | None = None


DEFAULT_TRUST = HostTrust()


class Judge(Protocol):
    def made_here(self, name: bytes) -> None:
        """This process has named the blocks of the pack itself."""
        ...

    def settled(self, name: bytes, segment: int) -> bool:
        """Whether ``believes`` says yes without a look at anything."""
        ...

    def believes(self, name: bytes, segment: int) -> bool:
        """Whether the ids of this segment may serve. May read the segment and some around it.

        Raises ``StoreError`` where the store can't be reached.
        """
        ...


class BelieveAll:
    """For measurements and small tests."""

    def made_here(self, name: bytes) -> None:
        return

    def settled(self, name: bytes, segment: int) -> bool:
        return True

    def believes(self, name: bytes, segment: int) -> bool:
        return True


@dataclass(slots=True)
class _Seen:
    """What is known of a pack: ``groups`` are bits."""

    own: bool
    groups: int = 0


class Trust:
    """Fulfils ``Judge``. What was found out is kept in small files below ``directory``, each proven
    by a MAC: a pack never changes, so it is true for ever. Without a directory it is found out
    again by each process. Safe for several threads.

    ``liars``: packs whose ids were not those of their blocks, or whose blocks could not be read.
    ``verified_bytes``: how many bytes of blocks were read to find that out.
    """

    def __init__(
        self,
        rule: DedupTrust,
        packs: PackReader,
        hasher: BlockHasher,
        tables: IdTables,
        key: bytes,
        directory: Path | None,
    ) -> None:
        self.rule = rule
        self._packs = packs
        self._hasher = hasher
        self._tables = tables
        self._key = key
        self._directory = directory
        self._lock = threading.RLock()
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        self.liars: set[bytes] = set()
        self.verified_bytes = 0

    def made_here(self, name: bytes) -> None:
        if self.rule != "repository":
            with self._lock:
                self._keep(name, _Seen(own=True))

    def settled(self, name: bytes, segment: int) -> bool:
        if self.rule == "repository":
            return True
        seen = self._seen.get(name)
        return seen is not None and (seen.own or bool(seen.groups >> segment // _GROUP & 1))

    def believes(self, name: bytes, segment: int) -> bool:
        if self.rule == "repository":
            return True
        with self._lock:
            if name in self.liars:
                return False
            try:
                seen = self._known(name)
                group = segment // _GROUP
                if seen.own or seen.groups >> group & 1:
                    return True
                if self.rule == "own":
                    return False
                right = self._verified(name, group)
            except RepositoryError:
                right = False
            if not right:
                self.liars.add(name)
                return False
            seen.groups |= 1 << group
            self._keep(name, seen)
            return True

    # -- inside -------------------------------------------------------------------------------
    def _verified(self, name: bytes, group: int) -> bool:
        """Read the frames of a group, and compare what they hold with what the table says."""
        table = self._packs.open(name).frames
        first = group * _GROUP_FRAMES
        numbers = np.arange(first, min(first + _GROUP_FRAMES, len(table.offset)))
        found = zero_ids(_GROUP * SEGMENT_BLOCKS)
        for some in self._packs.ranges(name, numbers):
            for number, plain in zip(some.tolist(), self._packs.frames(name, some), strict=True):
                ids = self._hasher.ids(plain)
                at = (number - first) * FRAME_BLOCKS
                found[at : at + len(ids)] = ids
                self.verified_bytes += len(plain)
        for place in range(_GROUP):
            told = self._tables.segment(name, group * _GROUP + place)
            if told is None:
                return False
            mine = found[place * SEGMENT_BLOCKS :][:SEGMENT_BLOCKS]
            if not np.array_equal(mine[: len(told)], told) or mine[len(told) :].any():
                return False
        return True

    def _known(self, name: bytes) -> _Seen:
        if name in self._seen:
            self._seen.move_to_end(name)
            return self._seen[name]
        seen = self._read(name)
        if seen is None:
            seen = _Seen(own=self._packs.is_own(name))
        self._keep(name, seen)
        return seen

    def _keep(self, name: bytes, seen: _Seen) -> None:
        self._seen[name] = seen
        while len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        if self._directory is not None:
            with contextlib.suppress(OSError):
                path = _path(self._directory, name)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_cached(path, self._encode(name, seen))

    def _read(self, name: bytes) -> _Seen | None:
        if self._directory is None:
            return None
        try:
            with _path(self._directory, name).open("rb") as stream:
                data = stream.read(_RECORD.size + 1)
            _, own, *words, _ = _RECORD.unpack(data)
        except (OSError, struct.error):
            return None
        seen = _Seen(own, sum(word << 64 * place for place, word in enumerate(words)))
        return seen if data == self._encode(name, seen) else None

    def _encode(self, name: bytes, seen: _Seen) -> bytes:
        words = [seen.groups >> 64 * place & (1 << 64) - 1 for place in range(_WORDS)]
        fields = _RECORD.pack(_MAGIC, seen.own, *words, bytes(16))[:-16]
        return fields + blake3(name + fields, key=self._key).digest(length=16)


def _path(directory: Path, name: bytes) -> Path:
    text = name.hex()
    return directory / text[:2] / text
