"""Whose a half-filled volume is: a lease beside it in its pool, while a restore writes there.

A volume can't be renamed through libvirt, so it has its own name from the start. It ends in the
restore's token, and a small volume ``drvm-restore-TOKEN.lease`` lies beside it from before the
first one is made until the machine is defined. Its holder writes a new number into it every few
seconds.
Whoever finds a lease knows what belongs to it, by name alone. Its holder is dead where it is known
here and its lock is free, or where the number stays the same for ``DEAD_AFTER_S`` of the observer's
own clock: the clocks of two machines are never compared.

Nothing rests on that being right. Who clears a lease away first leaves a note beside it
(``.over``), and takes only volumes that no machine names. The holder looks for both after it has
defined its machine, and takes the definition back if its lease is over: docs/adr/040. A pool may be
one of several hosts, which don't know each other's machines: a lease says whose it is, and no other
host clears it away.

A restore that was interrupted leaves lease and volumes, and on this machine its lock file, which
says what was restored where. The next restore of the same takes all of them over: docs/adr/051.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import HostError, HostUnreachable, RestoreError
from drvm.core.progress import Trace
from drvm.host.storage import Storage
from drvm.restore.targets.partial import KEPT_FOR, PASSING
from drvm.snapshot.locks import shared_directory, try_lock

KEPT = (*PASSING, HostUnreachable)
"""What ends a restore whose volumes stay: one that is worth going on with, or of which nobody
knows what there is."""

LEASE_BYTES = 512
BEAT_S = 20.0
DEAD_AFTER_S = 100.0
"""Five beats missed."""

_LAST_BEAT_S = 5.0
"""For one that is being written; on a host that is lost it ends when the connection does."""

_TOKEN_BYTES = 6
_NAME = re.compile(r"drvm-restore-(?P<token>[0-9a-f]{12})\.(lease|over)", re.ASCII)
_OWNED = re.compile(r"[A-Za-z0-9_.+-]+-(?P<token>[0-9a-f]{12})\.(raw|qcow2|fd)", re.ASCII)
_HOST = re.compile(rb"on (?P<host>[A-Za-z0-9_.-]{1,255}): ")
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.+-]", re.ASCII)
_MAX_NAME_CHARS = 80
_MAX_WHAT_BYTES = 256
_LOCK = re.compile(r"restore-(?P<token>[0-9a-f]{12})\.lock", re.ASCII)


def new_token() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


def is_token(text: str) -> bool:
    return owner_token(volume_name("", "", text, "fd")) == text


def volume_name(vm: str, part: str, token: str, ending: str) -> str:
    """Of one volume of a restore, unique by its token; what not every kind of pool takes in a name
    is left out."""
    return f"{_UNUSUAL.sub('_', vm)[:_MAX_NAME_CHARS]}-{part}-{token}.{ending}"


def lease_name(token: str) -> str:
    return f"drvm-restore-{token}.lease"


def over_name(token: str) -> str:
    return f"drvm-restore-{token}.over"


def lease_token(name: str) -> str | None:
    """Of a lease, or of the note that one is over."""
    found = _NAME.fullmatch(name)
    return found["token"] if found else None


def on_host(hostname: str) -> str:
    """The beginning of what a lease says: the host whose machines may have its volumes."""
    return f"on {hostname}: "


def host_of(content: bytes) -> str | None:
    """``None`` where a lease does not say it."""
    found = _HOST.match(content)
    return found["host"].decode() if found else None


def owner_token(name: str) -> str | None:
    """Of a volume that a restore made, by its name: half-filled only where there is a lease too."""
    found = _OWNED.fullmatch(name)
    return found["token"] if found else None


@dataclass(frozen=True, slots=True)
class HeldLease:
    """In every pool that a restore writes to."""

    storage: Storage
    pools: tuple[str, ...]
    token: str

    def check(self) -> None:
        """Raises ``RestoreError`` where somebody has cleared the lease away."""
        for pool in self.pools:
            names = self.storage.names(pool)
            if lease_name(self.token) not in names or over_name(self.token) in names:
                raise RestoreError(
                    f"this restore was taken for dead, and cleared away from pool {pool}",
                    hint="it was silent for minutes, or somebody removed its lease: run it again",
                )


@contextlib.contextmanager
def held(
    storage: Storage,
    pools: Sequence[str],
    token: str,
    about: str,
    trace: Trace,
    *,
    what: str = "",
    resumed: bool = False,
) -> Iterator[HeldLease]:
    """Take a lease, keep it alive, and give it back at the end. A crash leaves it, and so does what
    the restore may be gone on with after (``KEPT``). ``resumed``: it may be there. Raises
    ``HostError`` and ``RestoreError``; at the end only where nothing else went wrong."""
    with ExitStack() as stack:
        stack.enter_context(_known_here(token, what))
        for pool in pools:
            if not resumed or lease_name(token) not in storage.names(pool):
                storage.create(pool, lease_name(token), LEASE_BYTES)
            stack.push(_GiveBack(storage, pool, token))
            _beat(storage, pool, token, about, 0)
        lease = HeldLease(storage, tuple(pools), token)
        if resumed:
            lease.check()
        trace("volume-lease-taken")
        stack.enter_context(_beating(storage, pools, token, about))
        yield lease


def left_here(what: str) -> Iterator[str]:
    """The tokens of restores of the same, by processes of this machine that have ended."""
    directory = shared_directory()
    for path in sorted(directory.glob("restore-*.lock")) if directory is not None else ():
        found = _LOCK.fullmatch(path.name)
        with contextlib.suppress(OSError):
            said = path.read_bytes()[:_MAX_WHAT_BYTES].decode(errors="replace")
            if found and said == what and dead_here(found["token"]):
                yield found["token"]


def kept_here(token: str, now: dt.datetime) -> bool:
    """Whether a process of this machine that has ended may be gone on with, and none has for less
    than a week."""
    path = _lock_path(token)
    if path is None or not dead_here(token):
        return False
    with contextlib.suppress(OSError):
        status = path.stat()
        began = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
        return status.st_size > 0 and now - began < KEPT_FOR
    return False


def dead_here(token: str) -> bool:
    """Whether its holder was a process of this machine, since its boot, that has ended. ``False``:
    it lives, or was somewhere else."""
    path = _lock_path(token)
    if path is None or not path.exists():
        return False
    descriptor = try_lock(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def forget_here(token: str) -> None:
    """Its lease is gone: the lock is for nothing now."""
    if (path := _lock_path(token)) is not None:
        path.unlink(missing_ok=True)


class _GiveBack:
    def __init__(self, storage: Storage, pool: str, token: str) -> None:
        self._storage, self._pool, self._token = storage, pool, token

    def __call__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Where something else went wrong before, that is what is told."""
        if isinstance(error, KEPT):
            return
        try:
            self._storage.remove(self._pool, lease_name(self._token))
        except HostError:
            if error is None:
                raise


@contextlib.contextmanager
def _known_here(token: str, what: str) -> Iterator[None]:
    path = _lock_path(token)
    if path is None:
        yield
        return
    descriptor = try_lock(path)
    if descriptor is None:
        raise RestoreError("another restore is doing the same", hint="wait for it, and look again")
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, what.encode()[:_MAX_WHAT_BYTES], 0)
        yield
        path.unlink(missing_ok=True)
    except KEPT:
        raise  # a lease may be left: that its holder has ended is known by its lock
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _lock_path(token: str) -> Path | None:
    directory = shared_directory()
    return directory / f"restore-{token}.lock" if directory is not None else None


@contextlib.contextmanager
def _beating(storage: Storage, pools: Sequence[str], token: str, about: str) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        """A lease that can't be written is a matter for ``HeldLease.check``."""
        number = 0
        while not over.wait(BEAT_S):
            number += 1
            with contextlib.suppress(HostError):
                for pool in pools:
                    _beat(storage, pool, token, about, number)

    thread = threading.Thread(target=beat, name="volume-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LAST_BEAT_S)


def _beat(storage: Storage, pool: str, token: str, about: str, number: int) -> None:
    text = f"{about}, beat {number}".encode()[:LEASE_BYTES]
    storage.upload(pool, lease_name(token), LEASE_BYTES, [text.ljust(LEASE_BYTES)])
