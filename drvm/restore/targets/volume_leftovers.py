"""Volumes of restores that died: found by the leases beside them, and cleared away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.errors import HostError, UnknownVm
from drvm.core.text import printable
from drvm.host.model import Host
from drvm.host.storage import Hole, Storage
from drvm.restore.targets.placing import VOLUME_POOLS
from drvm.restore.targets.volume_lease import (
    DEAD_AFTER_S,
    LEASE_BYTES,
    dead_here,
    forget_here,
    host_of,
    kept_here,
    lease_name,
    lease_token,
    left_here,
    over_name,
    owner_token,
)

_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class FoundLease:
    """``content``: what its holder wrote last; ``volumes``: the names of what belongs to it.
    ``dead``: its holder is known to have ended; ``kept``: and the same restore goes on with it, on
    this machine. ``elsewhere``: it is another host's, in a pool of both, which alone knows what its
    machines have."""

    pool: str
    token: str
    content: bytes
    volumes: tuple[str, ...]
    dead: bool = False
    elsewhere: bool = False
    kept: bool = False

    @property
    def words(self) -> str:
        """Somebody else wrote them."""
        about = printable(self.content.decode(errors="replace").strip(" \0"), 200)
        return f"{about or 'a restore'} in pool {self.pool}: {', '.join(self.volumes) or 'nothing'}"


class LeaseObserver:
    """Tells which holders are dead, on one host: each look may know more than the one before."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self._host = host
        self._clock = clock
        self._hostname = ""
        self._since: dict[tuple[str, str], tuple[bytes, float]] = {}

    def look(self, pools: Iterable[str]) -> tuple[FoundLease, ...]:
        """Raises ``HostError``."""
        return tuple(found for pool in pools for found in self._look(pool))

    def wait(self, pools: tuple[str, ...]) -> tuple[FoundLease, ...]:
        """Look until of each lease it is known that its holder is dead, or that it lives."""
        found = self.look(pools)
        deadline_s = self._clock.monotonic_s() + DEAD_AFTER_S + _LOOK_S
        first = {lease.token: lease.content for lease in found}
        while self._clock.monotonic_s() < deadline_s and any(
            not (lease.dead or lease.elsewhere) and first.get(lease.token) == lease.content
            for lease in found
        ):
            self._clock.sleep(_LOOK_S)
            found = self.look(pools)
        return found

    def _look(self, pool: str) -> Iterator[FoundLease]:
        names = self._host.storage.names(pool)
        self._hostname = self._hostname or self._host.hostname()
        for token in sorted({token for name in names if (token := lease_token(name))}):
            mine = tuple(sorted(name for name in names if owner_token(name) == token))
            leased = lease_name(token) in names
            content = _read(self._host.storage, pool, lease_name(token)) if leased else b""
            before, since_s = self._since.get((pool, token), (None, 0.0))
            now_s = self._clock.monotonic_s()
            if before != content:
                since_s = now_s
                self._since[pool, token] = content, now_s
            over = over_name(token) in names  # somebody has begun to clear it away
            elsewhere = host_of(content) not in (None, self._hostname)
            dead = over or dead_here(token) or now_s - since_s >= DEAD_AFTER_S
            kept = not over and kept_here(token, self._clock.now())
            yield FoundLease(pool, token, content, mine, dead and not elsewhere, elsewhere, kept)


@contextlib.contextmanager
def cleared(host: Host, pools: tuple[str, ...], clock: Clock) -> Iterator[None]:
    """What is known to be dead is cleared away before, and what has not moved meanwhile behind; but
    for a week not what may be gone on with.

    What can't be looked at or removed stays for the next one, and for ``drvm doctor``.
    """
    observer = LeaseObserver(host, clock)
    _clear_dead(host, observer, pools)
    yield
    _clear_dead(host, observer, pools)


def clear(host: Host, lease: FoundLease) -> tuple[str, ...]:
    """Remove the volumes of a lease but those that a machine names, then the lease; returns what
    was removed. May be done again after a crash, by anybody, also two at once. Raises
    ``HostError``."""
    storage, over = host.storage, over_name(lease.token)
    if over not in storage.names(lease.pool):
        # before the machines are looked at: a holder that defines its own later sees it
        storage.create(lease.pool, over, LEASE_BYTES)
    named = _definitions(host)
    removed = []
    for name in sorted(storage.names(lease.pool)):
        # by its name, which has the token in it: a path may be written in several ways
        if owner_token(name) == lease.token and not any(name in xml for xml in named):
            storage.remove(lease.pool, name)
            removed.append(name)
    storage.remove(lease.pool, lease_name(lease.token))
    storage.remove(lease.pool, over)
    forget_here(lease.token)
    return tuple(removed)


def to_go_on_with(host: Host, what: str) -> str | None:
    """The token of an interrupted restore of the same, if there is one. Whose volumes a machine
    names is none: it may have written to them. Raises ``HostError``."""
    named: list[str] | None = None
    for token in left_here(what):
        named = _definitions(host) if named is None else named
        if not any(token in xml for xml in named):
            return token
    return None


def pools_of(host: Host) -> tuple[str, ...]:
    """Those in which there can be such volumes."""
    return tuple(p.name for p in host.pools() if p.active and p.kind in VOLUME_POOLS)


def _clear_dead(host: Host, observer: LeaseObserver, pools: tuple[str, ...]) -> None:
    with contextlib.suppress(HostError):
        for lease in observer.look(pools):
            if lease.dead and not lease.kept:
                clear(host, lease)


def _definitions(host: Host) -> list[str]:
    """As text: whatever a machine does with a volume, it names it. Stored and running ones."""
    found = []
    for domain in host.domains():
        with contextlib.suppress(UnknownVm):  # gone since the listing
            found += [domain.xml(inactive=True), domain.xml()]
    return found


def _read(storage: Storage, pool: str, name: str) -> bytes:
    """Empty for one that is gone since the listing."""
    data = b""
    with (
        contextlib.suppress(HostError),
        contextlib.closing(storage.download(pool, name, LEASE_BYTES)) as pieces,
    ):
        for piece in pieces:
            data += (
                bytes(min(piece.length, LEASE_BYTES)) if isinstance(piece, Hole) else bytes(piece)
            )
    return data[:LEASE_BYTES]
