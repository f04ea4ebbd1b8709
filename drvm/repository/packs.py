"""Reading packs from a store: footers and tables once, frames and blobs by range."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids
from drvm.core.errors import DamageFound, ObjectMissing, ObjectTruncated
from drvm.core.units import KIB, MIB
from drvm.repository.crypto import Sealer
from drvm.repository.layout import pack_object
from drvm.repository.pack import (
    FOOTER_BYTES,
    TAIL_GUESS_BYTES,
    Footer,
    FrameTable,
    OpenPack,
    parse_footer,
)
from drvm.repository.packcheck import check_sums
from drvm.store.base import Store

_TABLES_BYTES = 24 * MIB
"""Of frame tables in memory: those of a thousand full packs."""
_BLOB_WINDOWS = 8
_BLOB_WINDOW_BYTES = MIB
MAX_RANGE_BYTES = 8 * MIB
MAX_RANGE_PLAIN_BYTES = 32 * MIB
"""What a request may unpack to: pages that hold little shrink to a thousandth, and one thread
has all the work of a request."""
MAX_GAP_BYTES = 64 * KIB
"""Frames closer than this are fetched in one request: a request costs more than the bytes."""


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob in a metadata pack."""

    pack: bytes
    number: int


class PackReader:
    """Frames, blobs and id tables by pack name. Safe for any number of threads.

    Every byte that comes out was authenticated.
    """

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, OpenPack] = OrderedDict()
        self._tables_bytes = 0
        self._windows: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    def open(self, name: bytes) -> OpenPack:
        """Raises ``DamageFound`` where the pack is missing or not itself."""
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        footer, tail = self._end(name, lambda footer: footer.table_bytes)
        return self._remember(name, OpenPack(self._sealer, name, footer, tail[:-FOOTER_BYTES]))

    def blob(self, ref: BlobRef) -> bytes:
        """A blob of a metadata pack. Neighbours are read along with it and kept for a while."""
        pack = self.open(ref.pack)
        table = pack.frames
        if pack.footer.kind != "meta" or not 0 <= ref.number < len(table.offset):
            raise DamageFound(f"pack {ref.pack.hex()} has no blob {ref.number}")
        start, length = int(table.offset[ref.number]), int(table.stored_bytes[ref.number])
        return pack.open_frame(ref.number, self._window(pack, start, length))

    def ranges(self, name: bytes, wanted: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """The frames asked for, each once, in pack order, grouped into ranges that one request
        fetches. Raises ``DamageFound`` where the pack has no such frame."""
        pack = self.open(name)
        numbers = np.unique(wanted)
        if pack.footer.kind != "data" or (len(numbers) and numbers[-1] >= len(pack.frames.offset)):
            raise DamageFound(f"pack {name.hex()} lacks frames that a disk map names")
        return list(_coalesce(pack.frames, numbers))

    def frames(self, name: bytes, numbers: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The plain bytes of the frames of one range, fetched by one request and opened as they
        are taken: only one of them is in memory at a time."""
        pack = self.open(name)
        offset = pack.frames.offset[numbers]
        length = pack.frames.stored_bytes[numbers]
        start, end = int(offset[0]), int(offset[-1] + length[-1])
        data = memoryview(self._read(name, start, end - start))
        places = (offset - start).tolist()
        for number, at, size in zip(numbers.tolist(), places, length.tolist(), strict=True):
            yield pack.open_frame(number, data[at : at + size])

    def ids(self, name: bytes) -> tuple[Ids, npt.NDArray[np.int64]] | None:
        """(ids, ordinals) of a data pack, ``None`` for a metadata pack.

        Raises ``DamageFound`` unless the tables are what the footer names.
        """
        footer, tables = self._end(name, lambda footer: footer.ids_bytes + footer.table_bytes)
        _check_tables(name, footer, tables)
        if footer.kind != "data":
            return None
        sealed_ids = tables[: footer.ids_bytes]
        table = tables[footer.ids_bytes : -FOOTER_BYTES]
        return OpenPack(self._sealer, name, footer, table).ids(sealed_ids)

    def whole(self, name: bytes) -> bytes:
        """The object as it is. Raises ``DamageFound`` where it is missing."""
        with _named(name):
            return self._store.get(pack_object(name))

    def verify(self, name: bytes) -> None:
        """Read the whole pack and compare it with its name; needs no key. ``DamageFound``."""
        check_sums(name, self.whole(name))

    def forget(self, name: bytes) -> None:
        """What is read of this pack next comes from the store."""
        with self._lock:
            pack = self._open.pop(name, None)
            if pack is not None:
                self._tables_bytes -= pack.frames.size_bytes
            for key in [key for key in self._windows if key[0] == name]:
                del self._windows[key]

    # -- reading ------------------------------------------------------------------------------
    def _remember(self, name: bytes, pack: OpenPack) -> OpenPack:
        with self._lock:
            if name not in self._open:  # else another thread was faster
                self._open[name] = pack
                self._tables_bytes += pack.frames.size_bytes
            while self._tables_bytes > _TABLES_BYTES and len(self._open) > 1:
                self._tables_bytes -= self._open.popitem(last=False)[1].frames.size_bytes
        return pack

    def _window(self, pack: OpenPack, start: int, length: int) -> bytes:
        slot = start // _BLOB_WINDOW_BYTES
        base = slot * _BLOB_WINDOW_BYTES
        if start + length > base + _BLOB_WINDOW_BYTES:
            return self._read(pack.name, start, length)
        with self._lock:
            window = self._windows.get((pack.name, slot))
        if window is None:
            size = min(_BLOB_WINDOW_BYTES, pack.footer.body_bytes - base)
            window = self._read(pack.name, base, size)
            with self._lock:
                self._windows[pack.name, slot] = window
                while len(self._windows) > _BLOB_WINDOWS:
                    self._windows.popitem(last=False)
        return window[start - base : start - base + length]

    def _read(self, name: bytes, offset: int, length: int) -> bytes:
        with _named(name):
            return self._store.get(pack_object(name), offset=offset, length=length)

    def _end(self, name: bytes, tables_bytes: Callable[[Footer], int]) -> tuple[Footer, bytes]:
        """The footer, and the pack's end: so many bytes of tables, then the footer."""
        with _named(name):
            tail = self._store.get_tail(pack_object(name), TAIL_GUESS_BYTES)
            footer = parse_footer(name, tail)
            wanted = tables_bytes(footer) + FOOTER_BYTES
            if wanted > len(tail):
                tail = self._store.get_tail(pack_object(name), wanted)
        if wanted > len(tail):
            raise DamageFound(f"pack {name.hex()} is truncated")
        return footer, tail[-wanted:]


@contextlib.contextmanager
def _named(name: bytes) -> Iterator[None]:
    """A pack that is missing or cut is damage to whatever names it."""
    try:
        yield
    except ObjectMissing as error:
        raise DamageFound(f"pack {name.hex()} is missing from the repository") from error
    except ObjectTruncated as error:
        raise DamageFound(f"pack {name.hex()} is damaged: {error}") from error


def _check_tables(name: bytes, footer: Footer, tables: bytes) -> None:
    size = footer.ids_bytes + footer.table_bytes + FOOTER_BYTES
    if (
        len(tables) != size
        or hashlib.sha256(tables[:-FOOTER_BYTES]).digest() != footer.tables_sha256
    ):
        raise DamageFound(f"pack {name.hex()} has damaged tables")


def _coalesce(table: FrameTable, numbers: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Groups of neighbouring frames, each one range that is bounded both packed and unpacked."""
    offset = table.offset[numbers]
    end = offset + table.stored_bytes[numbers]
    unpacked = np.cumsum(table.plain_bytes[numbers])
    far = np.append(np.flatnonzero(offset[1:] - end[:-1] > MAX_GAP_BYTES) + 1, len(numbers))
    start = before = 0
    while start < len(numbers):
        stop = min(
            int(np.searchsorted(end, offset[start] + MAX_RANGE_BYTES, side="right")),
            int(np.searchsorted(unpacked, before + MAX_RANGE_PLAIN_BYTES, side="right")),
            int(far[np.searchsorted(far, start, side="right")]),
        )
        stop = max(stop, start + 1)
        yield numbers[start:stop]
        start, before = stop, int(unpacked[stop - 1])


Fetch = Callable[[BlobRef], bytes]
