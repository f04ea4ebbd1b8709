"""The packs of a repository during a check: each is read at most once, and a bad one is set aside.

To set aside is to put a tombstone. That is only a notice: no pack that a point needs is ever
collected for it, but no host deduplicates against it or shares what relies on it, so the next
backup of each machine stores anew what it still has (docs/adr/028-check.md).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import msgspec
import numpy as np

from drvm.chunker.blocks import Ids
from drvm.core.errors import ObjectExists, ObjectMissing, OutcomeUnknown, StoreRefused
from drvm.core.progress import Progress, Trace
from drvm.core.threads import Pool
from drvm.repository.layout import pack_object, tombstone
from drvm.repository.pack import FOOTER_BYTES
from drvm.repository.packcheck import Fault
from drvm.repository.window import I64
from drvm.store.base import MAX_OBJECT_BYTES, ObjectInfo, Store

_READERS = 2
"""Each holds one pack."""
_AHEAD = 4
_TRUE_IDS_KEPT = 64

Examine = Callable[[bytes, bytes], Fault | None]
"""(name, bytes) of a pack in, what is wrong with it out."""


class CheckedPacks:
    """What is known of the packs so far. One thread.

    ``listed``: those that are there; ``condemned`` ones, and those whose size no pack has, are read
    as soon as something asks for them (``implausible`` are the latter). With ``set_aside`` a bad
    pack gets a tombstone at once.
    ``passing``: how many were bad once and good when read again. ``refused``: what the store said
    where it did not take a tombstone.
    """

    def __init__(
        self,
        store: Store,
        listed: Mapping[bytes, ObjectInfo],
        condemned: frozenset[bytes],
        examine: Examine,
        trace: Trace,
        *,
        set_aside: bool,
    ) -> None:
        self._store = store
        self._listed = listed
        self._condemned = condemned
        self._examine = examine
        self._trace = trace
        self._sets_aside = set_aside
        self.implausible = frozenset(
            name
            for name, info in listed.items()
            if not FOOTER_BYTES < info.size_bytes <= MAX_OBJECT_BYTES
        )
        self._unread = {*condemned, *self.implausible}
        self._read: set[bytes] = set()
        self._true_ids: OrderedDict[bytes, tuple[Ids, I64]] = OrderedDict()
        self.faults: dict[bytes, Fault] = {}
        self.lying: set[bytes] = set()
        self.aside: set[bytes] = set()
        self.passing = 0
        self.refused = ""
        self.read_bytes = 0

    def read(self, names: Sequence[bytes], progress: Progress) -> None:
        """Read these packs, some at a time, and set the bad ones aside."""
        if not names:
            return
        progress.stage(f"reading {len(names)} packs", sum(map(self._size, names)))
        waiting: deque[tuple[bytes, Future[tuple[Fault | None, bool]]]] = deque()
        with Pool(_READERS, thread_name_prefix="check") as pool:
            try:
                for name in names:
                    waiting.append((name, pool.submit(self._look, name)))
                    if len(waiting) > _AHEAD:
                        self._take(*waiting.popleft(), progress)
                while waiting:
                    self._take(*waiting.popleft(), progress)
            finally:
                for _, future in waiting:
                    future.cancel()

    def doubtful(self, names: Iterable[bytes]) -> bool:
        """Whether one of these is bad."""
        return any(self.fault(name) is not None for name in names)

    def suspected(self, name: bytes) -> bool:
        """Whether somebody set it aside before, perhaps for what its checksums can't tell."""
        return name in self._condemned

    def fault(self, name: bytes) -> Fault | None:
        """What is wrong with the pack, as far as there was a reason to look."""
        if name not in self._read and (name in self._unread or name not in self._listed):
            return self.inspect(name)
        return self.faults.get(name)

    def inspect(self, name: bytes) -> Fault | None:
        """Look now, unless it was looked at."""
        if name not in self._read:
            self._note(name, *self._look(name))
        return self.faults.get(name)

    def blame(self, name: bytes, reason: str) -> None:
        """Something in the pack is wrong that its own checksums can't tell."""
        if self.inspect(name) is None:
            self._note(name, Fault(reason, np.zeros(0, dtype=np.int64)), passed=False)

    def true_ids(self, name: bytes) -> tuple[Ids, I64] | None:
        """(ids, ordinals) of the blocks of a pack whose own table is not to be believed."""
        if name not in self._true_ids:
            fault, _ = self._look(name)
            if fault is None or fault.ids is None or fault.ordinals is None:
                return None
            self._keep(name, fault)
        self._true_ids.move_to_end(name)
        return self._true_ids[name]

    # -- inside -------------------------------------------------------------------------------
    def _size(self, name: bytes) -> int:
        info = self._listed.get(name)
        return info.size_bytes if info is not None else 0

    def _take(
        self, name: bytes, looked: Future[tuple[Fault | None, bool]], progress: Progress
    ) -> None:
        fault, passed = looked.result()
        if fault is not None and fault.absent:
            self._unread.add(name)  # perhaps collected: bad only if something asks for it
        else:
            self._note(name, fault, passed)
        self.read_bytes += self._size(name)
        progress.advance(self._size(name))

    def _note(self, name: bytes, fault: Fault | None, passed: bool) -> None:
        self._read.add(name)
        self.passing += passed
        if fault is None:
            return
        self._keep(name, fault)
        self.faults[name] = replace(fault, ids=None, ordinals=None)
        if self._sets_aside and not fault.absent:
            self._set_aside(name, fault.reason)

    def _keep(self, name: bytes, fault: Fault) -> None:
        if fault.ids is not None and fault.ordinals is not None:
            self.lying.add(name)
            self._true_ids[name] = (fault.ids, fault.ordinals)
            while len(self._true_ids) > _TRUE_IDS_KEPT:
                self._true_ids.popitem(last=False)

    def _look(self, name: bytes) -> tuple[Fault | None, bool]:
        """What is wrong, and whether that has passed: a bad pack is read once more."""
        if self._once(name) is None:
            return None, False
        again = self._once(name)
        return again, again is None

    def _once(self, name: bytes) -> Fault | None:
        place = pack_object(name)
        try:
            large = self._size(name) > MAX_OBJECT_BYTES
            if large and self._store.head(place).size_bytes > MAX_OBJECT_BYTES:
                return Fault("it is larger than any object of drvm")
            return self._examine(name, self._store.get(place))
        except ObjectMissing:
            return Fault("it is missing", absent=True)

    def _set_aside(self, name: bytes, reason: str) -> None:
        """A crash leaves the tombstone or none."""
        note = msgspec.json.encode({"by": "drvm check", "reason": reason})
        try:
            self._store.put_if_absent(tombstone(name), note)
        except (ObjectExists, OutcomeUnknown):
            pass  # of the second the next check makes sure
        except StoreRefused as error:
            self.refused = error.message
            return
        self.aside.add(name)
        self._trace("pack-set-aside")
