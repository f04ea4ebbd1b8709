"""Frames of packs for several threads at once: each is fetched once, with its neighbours.

A request to a store costs more than the bytes that it brings, and what lies side by side in a pack
was side by side on the disk. So every request brings a few frames more than were asked for. They
are kept as they are stored, sealed, which takes little room and no work, and are opened when
somebody wants them. docs/adr/036-serving.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BlockHasher
from drvm.core.errors import DamageFound, DrvmError
from drvm.core.units import KIB, MIB
from drvm.repository.packs import PackReader
from drvm.restore.served.kept import Kept
from drvm.restore.served.patience import Patience

SEALED_BYTES = 192 * MIB
OPENED_BYTES = 64 * MIB
AROUND_BYTES = 256 * KIB
"""A request brings so much behind what was asked for, and half as much before it."""
_AHEAD_BYTES = 2 * MIB
"""At most so much is fetched ahead by one request: somebody may come to wait for it."""
_FETCHERS = 8
_AHEAD = 4
_QUEUE = 128
"""What waits to be done ahead; what is beyond is left to whoever asks."""

_I64 = npt.NDArray[np.int64]
_Key = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Opened:
    """A frame's plain blocks, and the 16 bytes that each was named by."""

    plain: bytes
    ids: bytes


@dataclass(eq=False, slots=True)
class _Range:
    """Neighbouring frames of one pack that one thread fetches. ``sealed`` is empty until they are
    there, and for ever where that failed."""

    pack: bytes
    first: int
    last: int
    done: threading.Event = field(default_factory=threading.Event)
    sealed: dict[int, bytes] = field(default_factory=dict)


class Frames:
    """Those of all packs of a repository. Raises ``DamageFound``, and what the store raises when
    patience is at its end."""

    def __init__(
        self,
        packs: PackReader,
        hasher: BlockHasher,
        patience: Patience,
        *,
        sealed_bytes: int = SEALED_BYTES,
        opened_bytes: int = OPENED_BYTES,
        around_bytes: int = AROUND_BYTES,
    ) -> None:
        self._packs = packs
        self._hasher = hasher
        self._patience = patience
        self._hurry = patience.at_once
        self._around_bytes = around_bytes
        self._sealed: Kept[_Key, bytes] = Kept(sealed_bytes, len)
        self._opened: Kept[_Key, Opened] = Kept(opened_bytes, lambda opened: len(opened.plain))
        self._coming: dict[_Key, _Range] = {}
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        self._packwise = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="pack")
        self._ahead = ThreadPoolExecutor(_AHEAD, thread_name_prefix="ahead")
        self._prepared = ThreadPoolExecutor(_AHEAD, thread_name_prefix="prepare")
        self._queued = threading.Semaphore(_QUEUE)

    def close(self) -> None:
        """What is under way ends by itself; nothing more is begun."""
        for pool in (self._packwise, self._fetchers, self._ahead, self._prepared):
            pool.shutdown(wait=False, cancel_futures=True)

    def get(self, wanted: Mapping[bytes, Sequence[int]]) -> dict[_Key, Opened]:
        """These frames by pack, opened; each request brings their neighbours along."""
        found: dict[_Key, Opened] = {}
        missing: dict[bytes, list[int]] = {}
        for pack, numbers in wanted.items():
            for number in numbers:
                opened = self._opened.get((pack, number))
                if opened is None:
                    missing.setdefault(pack, []).append(number)
                else:
                    found[pack, number] = opened
        each = map if len(missing) < 2 else self._packwise.map
        for some in each(self._of_pack, missing, missing.values()):
            found |= some
        return found

    def soon(self, task: Callable[[], object]) -> None:
        """Do it in the background, unless there is too much to be done. Its errors are nobody's:
        whoever wants the same will see."""
        if self._queued.acquire(blocking=False):
            try:
                self._ahead.submit(self._quietly, task)
            except RuntimeError:  # closed
                self._queued.release()

    def bring(self, pack: bytes, numbers: Sequence[int], *, opened: bool) -> None:
        """Begin to fetch frames that will be wanted soon, and to open them, too, if ``opened``.
        Nothing is promised: what fails, or is too much at once, is left out."""
        _, _, absent = self._look(pack, numbers)
        for first, last in self._groups(pack, absent, self._hurry) if absent else ():
            self.soon(partial(self._bring, pack, first, last, opened))

    def prepare(self, wanted: Mapping[bytes, Sequence[int]]) -> None:
        """Fetch these frames pack by pack, beside whatever else is done, up to half of what is
        kept. Nothing is promised, as by ``bring``."""
        room = self._sealed.limit // 2
        with contextlib.suppress(DrvmError, RuntimeError):
            for pack, numbers in sorted(wanted.items()):
                _, _, absent = self._look(pack, numbers)
                stored = self._stored(pack, self._hurry)
                for first, last in self._groups(pack, absent, self._hurry) if absent else ():
                    room -= int(stored[first : last + 1].sum())
                    if room < 0:
                        return
                    self._prepared.submit(self._try, partial(self._bring, pack, first, last, False))

    # -- inside -------------------------------------------------------------------------------
    def _of_pack(self, pack: bytes, numbers: Sequence[int]) -> dict[_Key, Opened]:
        found: dict[_Key, Opened] = {}
        while absent := [number for number in numbers if (pack, number) not in found]:
            # what another thread began to fetch is waited for, or asked for by this one
            for number, sealed in self._at_hand(pack, absent).items():
                found[pack, number] = self._open(pack, number, sealed)
        return found

    def _at_hand(self, pack: bytes, numbers: Sequence[int]) -> dict[int, bytes]:
        """Of these frames, sealed, all but those that another thread has just begun to fetch, or
        tried to in vain."""
        found, ranges, absent = self._look(pack, numbers)
        mine: list[_Range] = []
        if absent:
            groups = list(self._groups(pack, absent, self._patience))
            stored = self._stored(pack, self._patience)
            for first, last in groups:
                one = _Range(pack, *self._widened(pack, first, last, stored))
                if self._claim(one, absent):
                    mine.append(one)
            self._fetch_all(mine)
        for one in (*ranges, *mine):
            one.done.wait()
            found |= {n: one.sealed[n] for n in numbers if n in one.sealed}
        return found

    def _bring(self, pack: bytes, first: int, last: int, opened: bool) -> None:
        _, _, absent = self._look(pack, range(first, last + 1))
        if not absent:
            return
        one = _Range(pack, absent[0], absent[-1])
        if self._claim(one, absent):
            self._fetch(one, self._hurry)
        for number in absent if opened else ():
            if number in one.sealed:
                self._open(pack, number, one.sealed[number])

    def _quietly(self, task: Callable[[], object]) -> None:
        try:
            self._try(task)
        finally:
            self._queued.release()

    @staticmethod
    def _try(task: Callable[[], object]) -> None:
        with contextlib.suppress(DrvmError):
            task()

    def _look(
        self, pack: bytes, numbers: Sequence[int]
    ) -> tuple[dict[int, bytes], list[_Range], list[int]]:
        """(frames that are there, ranges that bring some of the others, what is left)."""
        found: dict[int, bytes] = {}
        coming: list[_Range] = []
        absent: list[int] = []
        for number in numbers:
            with self._lock:
                one = self._coming.get((pack, number))
            if one is not None:
                coming.append(one)
            elif (sealed := self._sealed.get((pack, number))) is not None:
                found[number] = sealed
            else:
                absent.append(number)
        return found, list(dict.fromkeys(coming)), absent

    def _groups(
        self, pack: bytes, numbers: Sequence[int], patience: Patience
    ) -> Iterator[tuple[int, int]]:
        """(first, last) of ranges that a request each brings, with what lies between."""
        wanted = np.array(numbers, dtype=np.int64)
        groups = patience.ask(lambda: self._packs.ranges(pack, wanted))
        stored = self._stored(pack, patience)
        for group in groups:
            first = int(group[0])
            room = _AHEAD_BYTES
            for number in range(first, int(group[-1]) + 1):
                room -= int(stored[number])
                if room < 0 and number > first:
                    yield first, number - 1
                    first, room = number, _AHEAD_BYTES - int(stored[number])
            yield first, int(group[-1])

    def _stored(self, pack: bytes, patience: Patience) -> _I64:
        """How large each of its frames is there."""
        return patience.ask(lambda: self._packs.open(pack)).frames.stored_bytes

    def _widened(self, pack: bytes, first: int, last: int, stored: _I64) -> tuple[int, int]:
        """With neighbours that are neither there nor coming."""
        behind = self._neighbours(pack, last, 1, self._around_bytes, stored)
        return self._neighbours(pack, first, -1, self._around_bytes // 2, stored), behind

    def _neighbours(self, pack: bytes, edge: int, step: int, room: int, stored: _I64) -> int:
        while 0 <= edge + step < len(stored):
            key = (pack, edge + step)
            room -= int(stored[edge + step])
            if room < 0 or key in self._coming or self._sealed.get(key) is not None:
                break
            edge += step
        return edge

    def _claim(self, one: _Range, wanted: Sequence[int]) -> bool:
        """Tell others that it comes; what is coming already is left to who has said so. ``False``
        where another thread was faster with all that is wanted of it."""
        pack, numbers = one.pack, range(one.first, one.last + 1)
        with self._lock:
            here = [(pack, number) for number in wanted if number in numbers]
            if all(key in self._coming or self._sealed.get(key) is not None for key in here):
                return False
            for number in numbers:
                self._coming.setdefault((pack, number), one)
        return True

    def _fetch_all(self, ranges: Sequence[_Range]) -> None:
        """At once. Where one fails, those not begun are given up: others wait for them."""
        if len(ranges) == 1:
            self._fetch(ranges[0], self._patience)
            return
        begun: dict[_Range, Future[None]] = {}
        try:
            for one in ranges:
                begun[one] = self._fetchers.submit(self._fetch, one, self._patience)
            for future in begun.values():
                future.result()
        finally:
            for one in ranges:
                if one not in begun or begun[one].cancel():
                    self._over(one)

    def _fetch(self, one: _Range, patience: Patience) -> None:
        """Also what others wait for: where it fails they ask themselves."""
        call = partial(self._packs.sealed, one.pack, one.first, one.last)
        try:
            one.sealed.update(enumerate(patience.ask(call), one.first))
            for number, sealed in one.sealed.items():
                self._sealed.put((one.pack, number), sealed)
        finally:
            self._over(one)

    def _over(self, one: _Range) -> None:
        with self._lock:
            for number in range(one.first, one.last + 1):
                if self._coming.get((one.pack, number)) is one:
                    del self._coming[one.pack, number]
        one.done.set()

    def _open(self, pack: bytes, number: int, sealed: bytes) -> Opened:
        opened = self._opened.get((pack, number))
        if opened is not None:
            return opened
        try:
            plain = self._packs.open(pack).open_frame(number, sealed)
        except DamageFound:
            # perhaps only on its way here: it is asked for once more
            (sealed,) = self._patience.ask(lambda: self._packs.sealed(pack, number, number))
            plain = self._packs.open(pack).open_frame(number, sealed)
        opened = Opened(plain, self._hasher.ids(plain).tobytes())
        self._opened.put((pack, number), opened)
        return opened
