"""The key slots of an opened repository: listing, adding, removing, and the paper form.

Nobody may ever remove the last slot that opens, also where two remove at once and the store
offers nothing but create-if-absent. So a slot goes only for somebody who has opened *another*
one, which stays, and in this order (``remove``):

1. a notice ``leaving/<slot>.<random>`` is created: "this slot is about to go";
2. ``leaving/`` is listed: the slot that stays must have no notice;
3. that is read again: it must be there, and what was opened;
4. the slot is deleted, then all notices of it.

Of two that would leave none, each for the other's sake, at least one lists after both notices
are there, and gives up: its own notice goes, the slot stays. A notice that a crash left behind
counts for ever (its owner may only be suspended): its slot still opens, but nobody relies on it
as the one that stays. ``remove`` of the same slot goes on.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from drvm.core.clock import rfc3339
from drvm.core.errors import (
    DamageFound,
    DrvmError,
    NoRepository,
    ObjectDamaged,
    ObjectExists,
    ObjectMissing,
    RepositoryError,
    StoreRefused,
    UsageError,
)
from drvm.core.progress import Trace, no_trace
from drvm.core.text import printable
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.keys import (
    MAX_LABEL_CHARS,
    MAX_SLOT_BYTES,
    UNNAMED,
    About,
    Opened,
    make_slot,
    open_slots,
    read_about,
)
from drvm.repository.layout import (
    CONFIG,
    FINALS,
    FORMAT_VERSION,
    KEYS,
    LEAVING,
    RepositoryConfig,
    decode_config,
    parse_slot,
    slot_object,
)
from drvm.repository.paper import Paper
from drvm.repository.points import create_once
from drvm.store.base import ObjectInfo, Store
from drvm.store.first_versions import retained_until

MAX_SLOTS = 256
"""How many are read, the oldest of them: whoever floods the store delays nobody for long."""
_TRIED = 16

State = Literal["good", "leaving", "foreign", "damaged"]


@dataclass(frozen=True, slots=True)
class Slot:
    """``state``: ``good``; ``leaving`` where a removal was begun; ``foreign`` where nobody made it
    who had the master keys; ``damaged``. ``in_use``: by which the repository was opened. ``about``
    is authenticated where the state is one of the first two, else empty."""

    id: str
    state: State
    in_use: bool
    about: About


class Keyring:
    """Whatever it does is done in the store when it returns."""

    def __init__(self, store: Store, opened: Opened) -> None:
        self._store = store
        self._opened = opened
        self._sealer = Sealer(opened.keys, opened.config.repository_id)

    @property
    def slot_in_use(self) -> str:
        """Its id."""
        return self._opened.slot.removeprefix(KEYS)

    def paper(self) -> Paper:
        """The master keys themselves: for a printer, and for nothing else."""
        return Paper(self._opened.config.repository_id, self._opened.keys)

    def slots(self) -> list[Slot]:
        """The oldest first."""
        leaving = _leaving(self._store)
        rows = []
        for name, data in read_slots(self._store):
            slot_id = name.removeprefix(KEYS)
            try:
                about = read_about(self._sealer, name, data)
            except RepositoryError:
                state: State = "damaged"
                about = None
            else:
                state = "foreign" if about is None else "good"
            if about is not None and slot_id in leaving:
                state = "leaving"
            in_use = name == self._opened.slot
            rows.append(Slot(slot_id, state, in_use, about or UNNAMED))
        return rows

    def find(self, text: str) -> Slot:
        """By the beginning of its id, four digits at least, or its label. Raises ``UsageError``
        unless that is exactly one."""
        rows = self.slots()
        matches = [row for row in rows if len(text) > 3 and row.id.startswith(text)]
        matches = matches or [row for row in rows if text and row.about.label == text]
        if len(matches) != 1:
            what = "is no key slot" if not matches else "may be several key slots"
            raise UsageError(f"{printable(text, 80)!r} {what}", hint="drvm key list shows them")
        return matches[0]

    def add(self, passphrase: bytes, about: About, trace: Trace = no_trace) -> str:
        """A new slot, read back from the store and opened before this returns; its id.

        A crash leaves the slot or none. Raises ``DamageFound`` where the store gives back other
        bytes, and ``RepositoryError`` where so many are older that no reader comes to it: the slot
        is then taken away again, as far as the store lets us.
        """
        return _add(self._store, self._opened, passphrase, about, trace).slot.removeprefix(KEYS)

    def change(self, passphrase: bytes, about: About, trace: Trace = no_trace) -> str:
        """A new slot in the place of the one in use; its id. The old one goes only when the new
        one was read back and opened. A crash in between leaves both."""
        old = self._opened.slot
        self._opened = _add(self._store, self._opened, passphrase, about, trace)
        try:
            self.remove(old.removeprefix(KEYS), trace)
        except (RepositoryError, StoreRefused) as error:
            words = f"the new passphrase opens key slot {self.slot_in_use}; {error.message}"
            raise type(error)(words, hint=error.hint) from None
        return self.slot_in_use

    def remove(self, slot_id: str, trace: Trace = no_trace) -> None:
        """Delete another slot than the one in use, which stays whatever others do meanwhile. Where
        Object Lock refuses that, the notice stays, so that the lock may end (upkeep/locks.py).

        A crash leaves the slot with a notice, or some notices without a slot, which mean nothing.
        """
        name = slot_object(slot_id)
        if name == self._opened.slot:
            raise UsageError(
                f"key slot {slot_id} is the one that was opened",
                hint="drvm key change puts another in its place; or open the repository by the "
                "passphrase of a slot that stays",
            )
        notice = f"{LEAVING}{slot_id}.{secrets.token_hex(8)}"
        self._store.put_if_absent(notice, b"leaving\n")
        trace("slot-notice-created")
        try:
            self._stays(slot_id)
            trace("slots-listed")
            self._store.delete(name)
        except (RepositoryError, StoreRefused) as error:  # so it was not deleted
            until = retained_until(self._store, name) if isinstance(error, StoreRefused) else None
            if until is None:
                self._store.delete(notice)
                raise
            raise StoreRefused(
                f"key slot {slot_id} is locked until {rfc3339(until)}",
                hint="its lock is lengthened no more: drvm key remove again when it has ended",
            ) from None
        trace("slot-deleted")
        for left in [info.name for info in self._store.list(f"{LEAVING}{slot_id}.")]:
            self._store.delete(left)
            trace("slot-notice-deleted")

    def _stays(self, going: str) -> None:
        """The slot in use is there as it was opened, and nobody removes it."""
        removed = self.slot_in_use in _leaving(self._store)
        try:
            stored = b"" if removed else self._store.get(self._opened.slot)
        except ObjectMissing:
            removed = True
        if removed:
            raise RepositoryError(
                f"key slot {going} stays: somebody removes {self.slot_in_use}, by which the "
                "repository was opened, or began to",
                hint="drvm key list shows what is left; drvm key add makes a slot to stay",
            )
        if stored != self._opened.data:
            raise DamageFound(
                f"key slot {going} stays: {self.slot_in_use}, by which the repository was opened, "
                "is not what it was",
                hint="print the paper form at once: drvm key export",
            )


def read_slots(store: Store) -> list[tuple[str, bytes]]:
    """(name, bytes) of the key slots, the oldest first. One that is larger than any can be counts
    as empty."""
    slots = []
    for info in _looked_at(store):
        with contextlib.suppress(ObjectMissing):
            small = info.size_bytes <= MAX_SLOT_BYTES
            slots.append((info.name, store.get(info.name) if small else b""))
    return slots


def _looked_at(store: Store) -> list[ObjectInfo]:
    found = [info for info in store.list(KEYS) if parse_slot(info.name) is not None]
    return sorted(found, key=lambda info: (info.modified, info.name))[:MAX_SLOTS]


def new_slot(
    store: Store, keys: MasterKeys, config: RepositoryConfig, passphrase: bytes, about: About
) -> Opened:
    """Create a slot under a new name; it is not read back."""
    name = slot_object(secrets.token_hex(8))
    data = make_slot(name, passphrase, keys, config, about)
    create_once(store, name, data)
    return Opened(keys, config, name, data)


def from_paper(
    store: Store, paper: Paper, passphrase: bytes, about: About, trace: Trace = no_trace
) -> str:
    """Make a slot of what a page holds, and ``drvm.json`` where that is lost; the slot's id. A
    damaged one stays: the slot's own copy serves.

    Nothing is written before something of the repository has opened by these keys, if there is
    anything to open. Raises ``NoRepository`` where there is nothing at all, ``UsageError`` where
    the page is of another repository, ``UnsupportedFormat`` and ``DamageFound``.
    """
    own = RepositoryConfig(FORMAT_VERSION, paper.repository_id, ())
    lost = False
    try:
        config = decode_config(store.get(CONFIG))
    except (ObjectMissing, ObjectDamaged, DamageFound):
        config, lost = own, True
    if config != own:
        raise UsageError(
            f"the paper form is of repository {paper.repository_id[:8]}, and "
            f"{store.location} is {config.repository_id[:8]}",
            hint="check repository.url in the config, or find the other page",
        )
    _prove(store, Sealer(paper.keys, own.repository_id), lost=lost)
    made = _add(store, Opened(paper.keys, own, "", b""), passphrase, about, trace)
    if lost:
        with contextlib.suppress(ObjectExists, ObjectDamaged):
            create_once(store, CONFIG, own.encode())
    return made.slot.removeprefix(KEYS)


def _prove(store: Store, sealer: Sealer, *, lost: bool) -> None:
    """Raises unless one of a few slots or finals opens, or there are none of both."""
    tried = 0
    for name, data in read_slots(store):
        with contextlib.suppress(RepositoryError):
            if read_about(sealer, name, data) is not None:
                return
        tried += 1
    for name in _some(store, FINALS):
        with contextlib.suppress(RepositoryError, ObjectDamaged, ObjectMissing):
            sealer.open_object(b"final", name, store.get(name))
            return
        tried += 1
    if tried:
        raise UsageError(
            f"the keys of the paper form open nothing of what is in {store.location}",
            hint="the page is of another repository, or of one that was made anew since",
        )
    if lost:
        raise NoRepository(
            f"there is no repository at {store.location}",
            hint="check repository.url in the config",
        )


def _some(store: Store, prefix: str) -> Iterator[str]:
    """The oldest: what somebody added since opens by nothing."""
    oldest = sorted(store.list(prefix), key=lambda info: (info.modified, info.name))
    yield from (info.name for info in oldest[:_TRIED])


def _add(store: Store, opened: Opened, passphrase: bytes, about: About, trace: Trace) -> Opened:
    if len(about.label) > MAX_LABEL_CHARS:
        raise UsageError(f"a label has at most {MAX_LABEL_CHARS} characters", hint="shorten it")
    made = new_slot(store, opened.keys, opened.config, passphrase, about)
    trace("slot-created")
    try:
        stored = [(made.slot, store.get(made.slot))]
        again = open_slots(passphrase, stored, opened.config)
        if again.keys != opened.keys:
            raise DamageFound("other keys came out of it")
    except RepositoryError as error:
        with contextlib.suppress(DrvmError):
            store.delete(made.slot)
        raise DamageFound(
            f"the new key slot can't be relied on: {error}",
            hint="the slots that were there before are as they were; drvm doctor tests the store",
        ) from None
    if all(info.name != made.slot for info in _looked_at(store)):
        with contextlib.suppress(DrvmError):
            store.delete(made.slot)
        raise RepositoryError(
            f"there are {MAX_SLOTS} older key slots: nobody would look at a new one",
            hint="take away those that are foreign: drvm key list, drvm key remove; where no "
            f"passphrase is known, the objects below {KEYS} that somebody added, by other tools",
        )
    trace("slot-proven")
    return replace(made, data=stored[0][1])


def _leaving(store: Store) -> frozenset[str]:
    """The ids that notices name; whether or not their slots are there."""
    tails = (info.name.removeprefix(LEAVING).partition(".") for info in store.list(LEAVING))
    return frozenset(slot_id for slot_id, found, _ in tails if found)
