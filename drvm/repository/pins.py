"""Pins: points that no rule may remove, each with a note of why.

A pin is an object of its own under a name that is never used again, so that each is created once,
also where a point is pinned anew. It is its name that pins: one that can't be read pins as well.
docs/FORMAT.md, "Pins".
"""

from __future__ import annotations

import contextlib
import secrets
from typing import Annotated

import msgspec

from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError, UsageError
from drvm.core.progress import Trace, no_trace
from drvm.repository.crypto import Sealer
from drvm.repository.layout import PINS, decode_json, parse_pin, pin_object
from drvm.repository.points import create_once
from drvm.store.base import Store

MAX_NOTE_CHARS = 500


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``created``: RFC 3339 in UTC; ``host``: who pinned. ``note`` is for people."""

    note: Annotated[str, msgspec.Meta(max_length=MAX_NOTE_CHARS)]
    created: str
    host: str


UNREADABLE = Pin("its note can't be read", "", "")


def new_nonce() -> str:
    """What sets one pin of a point apart from the others."""
    return secrets.token_hex(8)


def create_pin(
    store: Store,
    sealer: Sealer,
    point_id: str,
    pin: Pin,
    trace: Trace = no_trace,
    nonce: str = "",
) -> str:
    """Returns the pin's name, by ``nonce`` or by a new one. A crash leaves a pin or none. Raises
    ``UsageError`` for a note that is too long."""
    if len(pin.note) > MAX_NOTE_CHARS:
        raise UsageError(f"a note has at most {MAX_NOTE_CHARS} characters", hint="shorten it")
    name = pin_object(point_id, nonce or new_nonce())
    create_once(store, name, sealer.seal_object(b"pin", name, msgspec.json.encode(pin)))
    trace("pin-created")
    return name


def delete_pins(store: Store, point_id: str, trace: Trace = no_trace, nonce: str = "") -> int:
    """Take all pins off a point, or that of ``nonce``; how many there were. A crash leaves some of
    them."""
    names = [info.name for info in store.list(f"{PINS}{point_id}.{nonce}")]
    for name in names:
        store.delete(name)
        trace("pin-deleted")
    return len(names)


def is_pinned(store: Store, point_id: str) -> bool:
    return any(True for _ in store.list(f"{PINS}{point_id}."))


def list_pins(store: Store, sealer: Sealer) -> dict[str, tuple[Pin, ...]]:
    """Point id -> its pins, in the order of their names."""
    pins: dict[str, tuple[Pin, ...]] = {}
    for info in store.list(PINS):
        point_id = parse_pin(info.name)
        if point_id is not None:
            with contextlib.suppress(ObjectMissing):  # taken off since the listing
                pins[point_id] = (*pins.get(point_id, ()), _read(store, sealer, info.name))
    return pins


def _read(store: Store, sealer: Sealer, name: str) -> Pin:
    try:
        return decode_json(sealer.open_object(b"pin", name, store.get(name)), Pin, name)
    except (ObjectDamaged, RepositoryError):
        return UNREADABLE
