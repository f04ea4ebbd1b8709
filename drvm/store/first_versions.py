"""A bucket that keeps versions, read as its writers left it.

Nothing of a repository is written twice under one name, so every object has one version for ever.
The *first* version of an object is the object, and whatever came later was put there by somebody
else. It changes nothing of what is read, and is told as an alarm.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drvm.core.errors import ObjectExists, ObjectMissing, StoreRefused, TamperingFound
from drvm.core.units import MIB
from drvm.store import base
from drvm.store.history import LockMode, Version, VersionedStore

_REMEMBERED = 65536
_SHOWN = 3
_LEAST_PART_BYTES = 5 * MIB
_PARTS = re.compile(r'"?[0-9a-f]{32}-[0-9]{1,5}"?', re.ASCII)
"""The ETag of what was uploaded in parts: how many they were stands at its end."""


@dataclass(frozen=True, slots=True)
class Later:
    """What came after the first version of an object, the oldest first; ``last`` is when."""

    name: str
    what: str
    versions: tuple[Version, ...]

    @property
    def last(self) -> dt.datetime:
        return max(version.modified for version in self.versions)


class FirstVersions:
    """Implements ``Store`` over one that keeps versions. Objects are created and read as their
    first versions, and deleted by version, for ever: drvm leaves no delete markers. Names that
    begin with one of ``loose`` may come and go: they are as the store shows them, and are listed
    only by prefixes that begin so too.

    ``as_of``: only what was there at that moment, by the store's time, and names that begin with
    one of ``always``, whenever they came; then nothing is written.
    A read costs one request more the first time that its object is named, unless it or another
    whose name begins alike was looked up before.
    """

    def __init__(
        self,
        store: VersionedStore,
        *,
        loose: tuple[str, ...] = (),
        as_of: dt.datetime | None = None,
        always: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._loose = loose
        self._always = always
        self._as_of = as_of
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Version] = OrderedDict()
        self._alarms: dict[str, str] = {}

    @property
    def inner(self) -> VersionedStore:
        return self._store

    @property
    def location(self) -> str:
        return self._store.location

    @property
    def alarms(self) -> tuple[str, ...]:
        """What was found in the listings and reads so far, a line for each kind of object."""
        return self.alarms_below(("",))

    def alarms_below(self, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        with self._lock:
            found = sorted(item for item in self._alarms.items() if item[0].startswith(prefixes))
        lines = []
        for kind, group in itertools.groupby(found, lambda item: item[0].partition("/")[0]):
            mine = list(group)
            shown = ", ".join(f"{name} ({what})" for name, what in mine[:_SHOWN])
            more = f" and {len(mine) - _SHOWN} more" if len(mine) > _SHOWN else ""
            lines.append(f"{kind}: somebody changed {len(mine)}, read as they were: {shown}{more}")
        return tuple(lines)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith(self._loose):
            return self._store.get(name, offset=offset, length=length)
        version = self._first(name).id
        return self._store.get(name, offset=offset, length=length, version=version)

    def get_tail(self, name: str, length: int) -> bytes:
        if name.startswith(self._loose):
            return self._store.get_tail(name, length)
        return self._store.get_tail(name, length, version=self._first(name).id)

    def head(self, name: str) -> base.ObjectInfo:
        """Asks anew, also for what was listed."""
        if name.startswith(self._loose):
            return self._store.head(name)
        with self._lock:
            self._known.pop(name, None)
        return _info(self._first(name))

    def put(self, name: str, data: base.Buffer) -> None:
        self._check_writable()
        self._store.put(name, data)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """What somebody deleted can be created once more, as a later version: it is looked whose
        the first one is."""
        self._check_writable()
        self._store.put_if_absent(name, data)
        if self.get(name) != data:
            raise ObjectExists(f"{name} was there before, and was deleted by somebody")

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        if prefix.startswith(self._loose):
            return self._store.list(prefix)
        return map(_info, self._learn(prefix))

    def delete(self, name: str) -> None:
        """Every version, the first one last; markers go too. Raises ``TamperingFound`` where
        somebody else put one there, and ``StoreRefused`` for what is locked."""
        self._check_writable()
        versions = self._versions_of(name)
        alarm = _judge(versions)[1]
        if alarm and not name.startswith(self._loose):
            raise TamperingFound(f"{name} was {alarm} by somebody: it is not deleted")
        with self._lock:
            self._known.pop(name, None)
        for version in reversed(versions):
            self._store.history.delete(name, version.id)

    def later(self, prefix: str) -> Iterator[Later]:
        """What somebody did to the objects below ``prefix``."""
        for name, group in itertools.groupby(self._versions(prefix), lambda v: v.name):
            versions = list(group)
            first, what = self._judge(name, versions)
            if what:
                others = tuple(version for version in versions if version is not first)
                yield Later(name, what, others)

    def undo(self, later: Later) -> bool:
        """Delete those versions; whether the store let it. The first stays, so a crash leaves some
        of the others, and the object."""
        self._check_writable()
        try:
            for version in reversed(later.versions):
                self._store.history.delete(later.name, version.id)
        except StoreRefused:
            return False
        return True

    def retained_until(self, name: str) -> dt.datetime | None:
        """By Object Lock, the first version. Raises ``ObjectMissing``."""
        return self._store.history.retained_until(name, self._first(name).id)

    def retain(self, name: str, mode: LockMode, until: dt.datetime) -> None:
        self._check_writable()
        self._store.history.retain(name, self._first(name).id, mode, until)

    def close(self) -> None:
        self._store.close()

    # -- inside -------------------------------------------------------------------------------
    def _first(self, name: str) -> Version:
        base.check_name(name)
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return self._known[name]
        for first in self._learn(_neighbours(name)):
            if first.name == name:
                return first
        raise ObjectMissing(f"there is no {name} in {self.location}")

    def _learn(self, prefix: str) -> Sequence[Version]:
        """The objects below ``prefix``, each told by its first version."""
        firsts = []
        alarms = {}
        for name, versions in itertools.groupby(self._versions(prefix), lambda v: v.name):
            first, alarm = self._judge(name, list(versions))
            if first is not None and not name.startswith(self._loose):
                firsts.append(first)
                if alarm:
                    alarms[name] = alarm
        with self._lock:
            for name in [name for name in self._alarms if name.startswith(prefix)]:
                del self._alarms[name]
            self._alarms |= alarms
            if len(firsts) <= _REMEMBERED // 2:  # else it would only push out what is asked for
                for first in firsts:
                    self._remember(first)
        return firsts

    def _remember(self, version: Version) -> None:
        self._known[version.name] = version
        self._known.move_to_end(version.name)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _versions_of(self, name: str) -> Sequence[Version]:
        base.check_name(name)
        return [version for version in self._versions(name) if version.name == name]

    def _versions(self, prefix: str) -> Iterator[Version]:
        """Nothing is known of what came after ``as_of``."""
        found = self._store.history.list(prefix)
        if self._as_of is None:
            return found
        as_of, always = self._as_of, self._always
        return (v for v in found if v.modified <= as_of or v.name.startswith(always))

    def _judge(self, name: str, versions: Sequence[Version]) -> tuple[Version | None, str]:
        first, alarm = _judge(versions)
        past = self._as_of is not None and name.startswith(self._always)
        return first, "" if past else alarm  # of the past nothing is told that came later

    def _check_writable(self) -> None:
        if self._as_of is not None:
            raise StoreRefused(
                f"{self.location} is read as it was at {self._as_of.isoformat()}",
                hint="leave out --as-of to write",
            )


def _neighbours(name: str) -> str:
    """What to list to learn of an object: with it those whose random names begin alike, so that a
    restore asks for its packs' versions 256 times at most, however many packs it reads."""
    directory, slash, leaf = name.rpartition("/")
    return f"{directory}/{leaf[:2]}" if slash else name


def _judge(versions: Sequence[Version]) -> tuple[Version | None, str]:
    """The object, if there is one, and what somebody did to it. A request that arrived twice
    leaves two versions with the same bytes: no harm."""
    kept = [version for version in versions if not version.marker]
    if not kept:
        return None, ""
    first = next((version for version in kept if not _in_parts(version)), kept[0])
    if any((v.etag, v.size_bytes) != (first.etag, first.size_bytes) for v in kept):
        return first, "overwritten"
    return first, "deleted" if len(kept) < len(versions) else ""


def _in_parts(version: Version) -> bool:
    """Whether it was uploaded in parts, which drvm never does, nor do tools that copy a bucket
    where the object is as small as that. S3 dates such an upload by when it was begun, and it may
    end years later: begun when a name is known and the object not yet there, it would seem to be
    the first."""
    return version.size_bytes < _LEAST_PART_BYTES and _PARTS.fullmatch(version.etag) is not None


def _info(version: Version) -> base.ObjectInfo:
    return base.ObjectInfo(version.name, version.size_bytes, version.modified)


def first_versions(
    store: base.Store,
    *,
    loose: tuple[str, ...] = (),
    as_of: dt.datetime | None = None,
    always: tuple[str, ...] = (),
) -> base.Store:
    """``store`` itself where it keeps no versions, or where this identity may not know it. Raises
    ``StoreRefused`` where ``as_of`` can't be had."""
    if isinstance(store, VersionedStore) and store.history.versioning() == "kept":
        return FirstVersions(store, loose=loose, as_of=as_of, always=always)
    if as_of is not None:
        raise StoreRefused(
            f"{store.location} keeps no versions: it can be read only as it is",
            hint="--as-of needs a bucket with versioning, and an identity that may see it",
        )
    return store


def alarms_of(store: base.Store) -> tuple[str, ...]:
    """What was found so far; nothing where no versions are kept."""
    return store.alarms if isinstance(store, FirstVersions) else ()


def check_untouched(store: base.Store, prefixes: tuple[str, ...]) -> None:
    """Look at all objects below ``prefixes``; raises ``TamperingFound`` for any alarm there. Asks
    nothing where no versions are kept."""
    if isinstance(store, FirstVersions):
        for prefix in prefixes:
            store.list(prefix)
        if alarms := store.alarms_below(prefixes):
            raise TamperingFound(f"objects were changed by somebody: {'; '.join(alarms)}")


def is_locked(store: base.Store, name: str, now: dt.datetime) -> bool:
    """Whether Object Lock keeps it; ``now`` is the store's time."""
    until = retained_until(store, name)
    return until is not None and until > now


def retained_until(store: base.Store, name: str) -> dt.datetime | None:
    """``None`` also where there are no locks, or no such object."""
    if isinstance(store, FirstVersions):
        with contextlib.suppress(ObjectMissing):
            return store.retained_until(name)
    return None
