"""The contract of every store, and the rules of its names.

The safety of the repository rests on this contract: atomic create-if-absent, complete listings,
and writes that are never sent a second time once their outcome is in doubt (a duplicate that
arrives late would bring back what somebody has deleted or decided since).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from drvm.core.errors import ObjectDamaged, ObjectTruncated
from drvm.core.units import MIB

Buffer = bytes | bytearray | memoryview

MAX_NAME_LENGTH = 512
MAX_OBJECT_BYTES = 64 * MIB
"""Twice the largest pack: no answer longer than this is taken into memory."""

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,255}"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:[A-Za-z0-9._-]{{1,255}})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """``modified`` is the store's time, aware, in UTC; compare it only with other such times."""

    name: str
    size_bytes: int
    modified: dt.datetime


class Store(Protocol):
    """Whole objects under checked names. Every method may be called from any thread.

    Any method raises ``StoreRefused`` where the store says no and ``StoreUnreachable`` where it
    can't be reached after bounded retries. A name that ``is_name`` does not accept is a
    ``ValueError``: such names are bugs of the caller, or were not checked when they came in.
    No name may be the directory of another (``a`` and ``a/b``): not every store can hold both.
    """

    @property
    def location(self) -> str:
        """A printable URL without secrets."""
        ...

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly ``length`` bytes from ``offset``; up to the end where ``length`` is ``None``.

        Raises ``ObjectMissing``, ``ObjectTruncated`` where the range leaves the object, and
        ``ObjectDamaged`` where the answer is longer than ``MAX_OBJECT_BYTES``. Never returns less
        than was asked for.
        """
        ...

    def get_tail(self, name: str, length: int) -> bytes:
        """The last ``length`` bytes, or the whole object where it is smaller."""
        ...

    def head(self, name: str) -> ObjectInfo:
        """Raises ``ObjectMissing``."""
        ...

    def put(self, name: str, data: Buffer) -> None:
        """Create or replace; durable when it returns. At most ``MAX_OBJECT_BYTES``. What is
        replaced is still what is read where first versions are (``FirstVersions``).

        ``data`` is not looked at again after that: its memory may be used anew.

        An object is visible as a whole or not at all, also after a crash. Raises
        ``OutcomeUnknown`` where the answer was lost: read back, or take another name.
        """
        ...

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Create atomically: of any number of racing callers exactly one returns.

        Raises ``ObjectExists`` for the others, and ``OutcomeUnknown`` where the answer was lost:
        then read back and compare (data should hold a nonce), never send it again.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with ``prefix``, each once, ordered by name.

        ``prefix`` is a plain beginning of names (``""``, ``packs/``, ``final/3f``). Complete or
        an error, which may come with the first element asked for. What was created and deleted
        meanwhile may or may not be there. Names that ``is_name`` does not accept are left out:
        nothing of ours can have one, since no store creates them (consoles leave objects such as
        ``prefix/``, file systems ``lost+found``).
        """
        ...

    def delete(self, name: str) -> None:
        """No error if it is gone already."""
        ...

    def close(self) -> None:
        """Release connections. May be called again; nothing else may be called after it."""
        ...


def is_name(name: str) -> bool:
    """Segments of ``[A-Za-z0-9._-]``, at most 255 each, none of them empty, ``.`` or ``..``;
    at most ``MAX_NAME_LENGTH`` in all: safe in every file system and in every URL."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """``name`` itself, or ``ValueError``."""
    if not is_name(name):
        raise ValueError(f"{name!r:.200} is not the name of an object")
    return name


def is_prefix(prefix: str) -> bool:
    """Whether some name can begin with it."""
    return len(prefix) <= MAX_NAME_LENGTH and _PREFIX.fullmatch(prefix) is not None


def check_prefix(prefix: str) -> str:
    """``prefix`` itself, or ``ValueError``."""
    if not is_prefix(prefix):
        raise ValueError(f"{prefix!r:.200} is not the beginning of an object's name")
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """``ValueError`` for ranges that no object has."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"no such range: offset {offset}, length {length}")


def check_size(name: str, size_bytes: int) -> None:
    """Raises ``ObjectDamaged`` for more than ``MAX_OBJECT_BYTES``, on the way in and out."""
    if size_bytes > MAX_OBJECT_BYTES:
        raise ObjectDamaged(
            f"{name}: {size_bytes} bytes at once, more than {MAX_OBJECT_BYTES}",
            hint="drvm never writes objects of this size; something else put it there",
        )


def past_the_end(name: str, offset: int, length: int | None, size_bytes: int) -> ObjectTruncated:
    """The error for a range that leaves the object."""
    asked = "the rest" if length is None else f"{length} bytes"
    return ObjectTruncated(
        f"{name} has {size_bytes} bytes; asked for {asked} from byte {offset}",
        hint="something cut the object; points that don't need it can still be restored",
    )
