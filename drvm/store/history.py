"""What a store may offer beside ``Store``: versions of objects, and locks on them.

In a versioned bucket whoever may put can hide an object behind a later version, and whoever may
delete without naming a version behind a delete marker; the first version stays where it is until
somebody deletes it by its id, which is another permission, and which Object Lock refuses.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from drvm.store.base import Store

LockMode = Literal["governance", "compliance"]
Versioning = Literal["kept", "none", "unknown"]


@dataclass(frozen=True, slots=True)
class LockRule:
    """New objects whose names begin with one of ``prefixes`` are locked for ``days``.

    ``governance``: whoever has a permission of its own may shorten a lock; ``compliance``: nobody.
    """

    mode: LockMode
    days: int
    prefixes: tuple[str, ...]

    def covers(self, name: str) -> bool:
        return name.startswith(self.prefixes)

    def until(self, now: dt.datetime) -> dt.datetime:
        """Whole seconds, as S3 keeps them. By the host's own clock: a service refuses requests
        whose signature is more than 15 minutes off, so no clock that is years ahead locks
        anything for years."""
        return (now + dt.timedelta(days=self.days)).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Version:
    """``etag`` stands for the content: equal ones of equal size hold equal bytes. It is empty for
    delete markers (``marker``), which hold nothing."""

    name: str
    id: str
    size_bytes: int
    modified: dt.datetime
    etag: str
    marker: bool = False


class History(Protocol):
    """The versions of a store's objects. Raises what ``Store`` does."""

    def versioning(self) -> Versioning:
        """Whether the store keeps versions; ``unknown`` where this identity may not ask."""
        ...

    def list(self, prefix: str) -> Iterator[Version]:
        """All versions and markers, ordered by name, the oldest first. Complete or an error."""
        ...

    def delete(self, name: str, version: str) -> None:
        """For ever. ``StoreRefused`` for one that is locked; no error if it is gone already."""
        ...

    def retained_until(self, name: str, version: str) -> dt.datetime | None:
        """By a lock, if there is one. Raises ``ObjectMissing``."""
        ...

    def retain(self, name: str, version: str, mode: LockMode, until: dt.datetime) -> None:
        """Lock, or lengthen a lock. ``StoreRefused`` for a moment before its end."""
        ...


class Trials(Protocol):
    """Faults that a probe makes on purpose."""

    def put_cut(self, name: str, data: bytes) -> None:
        """Begin to send an object of at least 64 KiB, and hang up half-way."""
        ...

    def put_wrong(self, name: str, data: bytes) -> bool:
        """Send an object with the checksum of other bytes; whether the store took it."""
        ...


@runtime_checkable
class VersionedStore(Store, Protocol):
    """A store that can read one version of an object, where its bucket keeps them: a service,
    reached by a network."""

    @property
    def history(self) -> History: ...

    @property
    def trials(self) -> Trials: ...

    def get(
        self,
        name: str,
        *,
        offset: int = 0,
        length: int | None = None,
        version: str | None = None,
    ) -> bytes: ...

    def get_tail(self, name: str, length: int, *, version: str | None = None) -> bytes: ...
