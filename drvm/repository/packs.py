"""Reading packs from a store: footers and tables once, frames and blobs by range."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import Ids
from drvm.core.errors import DamageFound, ObjectDamaged, ObjectMissing
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

I64 = npt.NDArray[np.int64]
Open = Callable[[memoryview], int]
"""Puts the plain bytes of a frame at the start of the memory that is given; returns how many."""

_TABLES_BYTES = 24 * MIB
"""Of frame tables in memory: those of a thousand full packs."""
_BLOB_WINDOWS = 8
_BLOB_WINDOW_BYTES = MIB
MAX_RANGE_BYTES = 8 * MIB
MAX_SWEEP_BYTES = 16 * MIB
"""Half a pack."""
MAX_GAP_BYTES = 256 * KIB
"""Frames closer than this are fetched in one request: a request costs more than the bytes."""
_MANY_FRAMES = 32


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
        return self._known(name) or self._opened(name, TAIL_GUESS_BYTES)[0]

    def is_own(self, name: bytes) -> bool:
        """Whether this host made the pack. Raises as ``open`` does."""
        footer = self.open(name).footer
        bound = footer.salt + footer.body_blake3 + footer.tables_sha256
        return footer.mark == self._sealer.mark(b"pack", bound)

    def blob(self, ref: BlobRef) -> bytes:
        """A blob of a metadata pack. Neighbours are read along with it and kept for a while."""
        pack = self.open(ref.pack)
        table = pack.frames
        if pack.footer.kind != "meta" or not 0 <= ref.number < len(table.offset):
            raise DamageFound(f"pack {ref.pack.hex()} has no blob {ref.number}")
        start, length = int(table.offset[ref.number]), int(table.stored_bytes[ref.number])
        return pack.open_frame(ref.number, self._window(pack, start, length))

    def ranges(self, name: bytes, wanted: I64) -> list[I64]:
        """The frames asked for, each once, in pack order, grouped into ranges that one request
        fetches. Raises ``DamageFound`` where the pack has no such frame."""
        return list(_coalesce(*_checked(self.open(name), wanted), MAX_RANGE_BYTES))

    def frames(self, name: bytes, numbers: I64) -> Iterator[bytes]:
        """The plain bytes of the frames of one range, fetched by one request and opened as they
        are taken: only one of them is in memory at a time."""
        pack = self.open(name)
        for number, sealed in _sealed(pack, numbers, *self._fetched(pack, numbers)):
            yield pack.open_frame(number, sealed)

    def frame(self, name: bytes, number: int) -> bytes:
        """One frame, by a request of its own. Raises ``DamageFound``."""
        (numbers,) = self.ranges(name, np.array([number]))
        (plain,) = self.frames(name, numbers)
        return plain

    def sealed(self, name: bytes, first: int, last: int) -> list[bytes]:
        """Frames ``first`` to ``last`` of a data pack as they are stored, by one request. What
        opens them is ``open(name).open_frame``."""
        pack = self.open(name)
        numbers = np.arange(first, last + 1)
        _checked(pack, numbers)
        return [bytes(s) for _, s in _sealed(pack, numbers, *self._fetched(pack, numbers))]

    def sweep(self, name: bytes, wanted: I64) -> Iterator[tuple[I64, Iterator[Open]]]:
        """The frames asked for, each once, by as few requests as can be: in groups that one
        request brings, (their numbers, ascending; what opens each, one after the other).

        A group is gone when the next one is asked for: only one is in memory, with at most
        ``MAX_SWEEP_BYTES``. Where many frames are wanted of a pack that is not known yet, the
        request for its tables brings the last of them too, so that a pack costs two. Raises
        ``DamageFound`` where the pack, or one of the frames, is not there.
        """
        pack, tail = self._known(name), b""
        if pack is None:
            pack, tail = self._opened(name, _first_bytes(wanted))
        table, numbers = _checked(pack, wanted)
        start = pack.footer.pack_bytes - len(tail)
        absent = int(np.searchsorted(table.offset[numbers], start))
        if absent < len(numbers):
            yield numbers[absent:], (opens := _opens(pack, numbers[absent:], tail, start))
            opens.close()
        del tail
        for group in _coalesce(table, numbers[:absent], MAX_SWEEP_BYTES):
            yield group, (opens := _opens(pack, group, *self._fetched(pack, group)))
            opens.close()

    def ids(self, name: bytes) -> tuple[Ids, I64] | None:
        """(ids, ordinals) of a data pack, ``None`` for a metadata pack.

        Raises ``DamageFound`` unless the tables are what the footer names.
        """
        footer, tail = self._end(
            name, TAIL_GUESS_BYTES, lambda footer: footer.ids_bytes + footer.table_bytes
        )
        tables = tail[-(footer.ids_bytes + footer.table_bytes + FOOTER_BYTES) :]
        _check_tables(name, footer, tables)
        if footer.kind != "data":
            return None
        sealed_ids = tables[: footer.ids_bytes]
        table = tables[footer.ids_bytes : -FOOTER_BYTES]
        pack = self._remember(name, OpenPack(self._sealer, name, footer, table))
        return pack.ids(sealed_ids)

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
    def _known(self, name: bytes) -> OpenPack | None:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
            return self._open.get(name)

    def _opened(self, name: bytes, tail_bytes: int) -> tuple[OpenPack, bytes]:
        """The pack, and so much of its end, or more, or all of it."""
        footer, tail = self._end(name, tail_bytes, lambda footer: footer.table_bytes)
        table = tail[-(footer.table_bytes + FOOTER_BYTES) : -FOOTER_BYTES]
        return self._remember(name, OpenPack(self._sealer, name, footer, table)), tail

    def _remember(self, name: bytes, pack: OpenPack) -> OpenPack:
        with self._lock:
            if name not in self._open:  # else another thread was faster
                self._open[name] = pack
                self._tables_bytes += pack.frames.size_bytes
            while self._tables_bytes > _TABLES_BYTES and len(self._open) > 1:
                self._tables_bytes -= self._open.popitem(last=False)[1].frames.size_bytes
        return pack

    def _fetched(self, pack: OpenPack, numbers: I64) -> tuple[bytes, int]:
        """The range of these frames, and where it begins."""
        table, last = pack.frames, numbers[-1]
        start = int(table.offset[numbers[0]])
        return self._read(
            pack.name, start, int(table.offset[last] + table.stored_bytes[last]) - start
        ), start

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

    def _end(
        self, name: bytes, tail_bytes: int, tables_bytes: Callable[[Footer], int]
    ) -> tuple[Footer, bytes]:
        """The footer, and the pack's end: ``tail_bytes``, or at least the tables asked for."""
        with _named(name):
            tail = self._store.get_tail(pack_object(name), tail_bytes)
            footer = parse_footer(name, tail)
            wanted = tables_bytes(footer) + FOOTER_BYTES
            if wanted > len(tail):
                tail = self._store.get_tail(pack_object(name), wanted)
        if wanted > len(tail):
            raise DamageFound(f"pack {name.hex()} is truncated")
        return footer, tail


@contextlib.contextmanager
def _named(name: bytes) -> Iterator[None]:
    """A pack that is missing or cut is damage to whatever names it."""
    try:
        yield
    except ObjectMissing as error:
        raise DamageFound(f"pack {name.hex()} is missing from the repository") from error
    except ObjectDamaged as error:
        raise DamageFound(f"pack {name.hex()} is damaged: {error}") from error


def _check_tables(name: bytes, footer: Footer, tables: bytes) -> None:
    size = footer.ids_bytes + footer.table_bytes + FOOTER_BYTES
    if (
        len(tables) != size
        or hashlib.sha256(tables[:-FOOTER_BYTES]).digest() != footer.tables_sha256
    ):
        raise DamageFound(f"pack {name.hex()} has damaged tables")


def _opens(pack: OpenPack, numbers: I64, data: bytes, start: int) -> Generator[Open]:
    for number, sealed in _sealed(pack, numbers, data, start):
        yield partial(pack.open_into, number, sealed)


def _sealed(
    pack: OpenPack, numbers: I64, data: bytes, start: int
) -> Iterator[tuple[int, memoryview]]:
    """(number, sealed) of frames that lie in ``data``, which begins at ``start`` of the pack."""
    offset = pack.frames.offset[numbers] - start
    view = memoryview(data)
    ends = offset + pack.frames.stored_bytes[numbers]
    for number, at, end in zip(numbers.tolist(), offset.tolist(), ends.tolist(), strict=True):
        yield number, view[at:end]


def _first_bytes(wanted: I64) -> int:
    """How much of a pack's end to ask for, of which these frames are wanted: where they are many,
    and most of those up to the last one, most of what comes with the tables is wanted too."""
    numbers = np.unique(wanted)
    many = len(numbers) >= _MANY_FRAMES and 2 * len(numbers) > int(numbers[-1])
    return MAX_SWEEP_BYTES if many else TAIL_GUESS_BYTES


def _checked(pack: OpenPack, wanted: I64) -> tuple[FrameTable, I64]:
    """The frames asked for, each once, ascending, if the pack has them."""
    numbers = np.unique(wanted)
    table = pack.frames
    if pack.footer.kind != "data" or (len(numbers) and numbers[-1] >= len(table.offset)):
        raise DamageFound(f"pack {pack.name.hex()} lacks frames that a disk map names")
    return table, numbers


def _coalesce(table: FrameTable, numbers: I64, max_bytes: int) -> Iterator[I64]:
    """Groups of neighbouring frames, each one range."""
    offset = table.offset[numbers]
    end = offset + table.stored_bytes[numbers]
    far = np.append(np.flatnonzero(offset[1:] - end[:-1] > MAX_GAP_BYTES) + 1, len(numbers))
    start = 0
    while start < len(numbers):
        stop = min(
            int(np.searchsorted(end, offset[start] + max_bytes, side="right")),
            int(far[np.searchsorted(far, start, side="right")]),
        )
        stop = max(stop, start + 1)
        yield numbers[start:stop]
        start = stop


Fetch = Callable[[BlobRef], bytes]
