"""What a store really does: asked before a repository relies on it, and by ``drvm doctor``."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.errors import ObjectExists, ObjectMissing, OutcomeUnknown, StoreError, StoreRefused
from drvm.core.findings import Finding
from drvm.store.base import Store
from drvm.store.first_versions import FirstVersions
from drvm.store.history import LockRule, VersionedStore

RACE_ROUNDS = 2  # contended conditional writes take SeaweedFS seconds
RACE_WRITERS = 4
MAX_DRIFT_S = 60.0

CUT_BYTES = 1 << 20
LOCK_HINT = "repository.object_lock needs a bucket that was made with Object Lock: docs/S3.md"

_SAMPLE = bytes(range(256)) * 16


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Names of findings: ``write``, ``create-if-absent``, ``list``, ``ranged-read``, ``tail-read``,
    ``clock``, ``delete``; of services also ``cut-upload``, ``checksum`` and ``versions``; and
    ``object-lock`` where it is asked for. Where ``write`` fails there are no others."""

    location: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def finding(self, name: str) -> Finding | None:
        return next((finding for finding in self.findings if finding.name == name), None)


def probe(store: Store, clock: Clock, lock: LockRule | None = None) -> ProbeReport:
    """Try what the repository depends on, with objects under ``probe/<random>/``; ``lock``: also
    that objects can be locked so. The one that is locked for a minute stays there.

    Raises nothing that the store does: every fault is a finding. Removes its objects; where the
    store does not let it, the finding ``delete`` says so, and they stay (an identity that only
    backs up may not delete).
    """
    folder = f"probe/{secrets.token_hex(8)}"
    sample = f"{folder}/sample"
    before = clock.now()
    findings = [_finding("write", lambda: _write(store, sample))]
    if findings[0].ok:
        after = clock.now()
        findings += [
            _finding("create-if-absent", lambda: _race(store, folder)),
            _finding("list", lambda: _list(store, folder)),
            _finding("ranged-read", lambda: _ranged_read(store, sample)),
            _finding("tail-read", lambda: _tail_read(store, sample)),
            _finding("clock", lambda: _drift(store, sample, before, after)),
            *_service_findings(store, clock, lock, folder),
            _finding("delete", lambda: _delete(store, folder)),
        ]
    return ProbeReport(store.location, tuple(findings))


def _service_findings(
    store: Store, clock: Clock, lock: LockRule | None, folder: str
) -> list[Finding]:
    service = store.inner if isinstance(store, FirstVersions) else store
    if not isinstance(service, VersionedStore):
        if lock is None:
            return []
        return [Finding("object-lock", False, "this store has no locks", LOCK_HINT)]
    findings = [
        _finding("cut-upload", lambda: _cut_upload(service, folder)),
        _finding("checksum", lambda: _checksum(service, folder)),
        _finding("versions", lambda: _versions(service, folder)),
    ]
    if lock is not None:
        findings.append(_finding("object-lock", lambda: _object_lock(service, clock, lock)))
    return findings


def store_time(store: Store) -> dt.datetime:
    """The store's own clock, told by an object under ``probe/`` that comes and goes. Cut off to
    whole seconds by some stores; late by as long as the requests took. It stays where this identity
    may not delete."""
    name = f"probe/{secrets.token_hex(8)}/time"
    store.put(name, b"")
    try:
        return store.head(name).modified
    finally:
        with contextlib.suppress(StoreRefused):
            store.delete(name)


class _Wrong(Exception):
    """The store does something else than it should."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.hint = hint or "this store is not fit for a repository"


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except _Wrong as error:
        return Finding(name, False, str(error), error.hint)
    except StoreError as error:
        return Finding(name, False, error.message, error.hint)


def _write(store: Store, name: str) -> str:
    store.put(name, _SAMPLE)
    if store.get(name) != _SAMPLE:
        raise _Wrong("what was written is not what is read")
    return "objects can be written and read back"


def _race(store: Store, folder: str) -> str:
    """One winner a round, also where answers were lost; and nobody wins against what is there."""
    with ThreadPoolExecutor(RACE_WRITERS) as threads:
        for number in range(RACE_ROUNDS):
            name = f"{folder}/race-{number}"
            nonces = [secrets.token_bytes(16) for _ in range(RACE_WRITERS)]
            won = list(threads.map(lambda nonce, name=name: _create(store, name, nonce), nonces))
            winners = [nonce for nonce, wins in zip(nonces, won, strict=True) if wins]
            if winners != [store.get(name)] or _create(store, name, b"late"):
                raise _Wrong(
                    f"of {RACE_WRITERS} writers that create one object {len(winners)} were told "
                    "that they did, or a later one replaced it",
                    "there is no atomic create-if-absent: only one host may write to a "
                    "repository here, and never two drvm at once",
                )
    return f"{RACE_ROUNDS} rounds with {RACE_WRITERS} writers had one winner each"


def _create(store: Store, name: str, nonce: bytes) -> bool:
    try:
        store.put_if_absent(name, nonce)
    except ObjectExists:
        return False
    except OutcomeUnknown:
        return _read_back(store, name) == nonce
    return True


def _read_back(store: Store, name: str) -> bytes | None:
    try:
        return store.get(name)
    except ObjectMissing:
        return None


def _list(store: Store, folder: str) -> str:
    names = [f"{folder}/listed-{number}" for number in range(3)]
    for name in names:
        store.put(name, b"")
    if [info.name for info in store.list(f"{folder}/listed-")] != names:
        raise _Wrong("objects just written are not all listed")
    return "objects are listed as soon as they are written"


def _ranged_read(store: Store, name: str) -> str:
    if store.get(name, offset=300, length=1000) != _SAMPLE[300:1300]:
        raise _Wrong("a ranged read gave other bytes")
    return "parts of objects can be read"


def _tail_read(store: Store, name: str) -> str:
    if store.get_tail(name, 100) != _SAMPLE[-100:]:
        raise _Wrong("a read of the last bytes gave other bytes")
    return "the ends of objects can be read"


def _drift(store: Store, name: str, before: dt.datetime, after: dt.datetime) -> str:
    """Stores tell whole seconds, cut off."""
    modified = store.head(name).modified
    earliest = before.replace(microsecond=0)
    drift_s = max((modified - after).total_seconds(), 0.0, (earliest - modified).total_seconds())
    word = "ahead of" if modified > after else "behind"
    if drift_s > MAX_DRIFT_S:
        raise _Wrong(
            f"the store's clock is {drift_s:.0f} s {word} this host's",
            "set this host's clock by NTP; if it is right, tell who runs the store",
        )
    return f"the store's clock is within {drift_s + 1:.0f} s of this host's"


def _cut_upload(service: VersionedStore, folder: str) -> str:
    name = f"{folder}/cut"
    service.trials.put_cut(name, bytes(CUT_BYTES))
    try:
        service.head(name)
    except ObjectMissing:
        return "an upload that breaks off leaves nothing"
    raise _Wrong("an upload that broke off left an object")


def _checksum(service: VersionedStore, folder: str) -> str:
    if service.trials.put_wrong(f"{folder}/wrong", _SAMPLE):
        raise _Wrong(
            "checksums of uploads are ignored",
            "what is damaged on the way is found only when it is read: run drvm check often",
        )
    return "what arrives damaged is refused"


def _versions(service: VersionedStore, folder: str) -> str:
    versioning = service.history.versioning()
    if versioning == "unknown":
        raise _Wrong(
            "this identity may not ask whether versions are kept",
            "allow it s3:GetBucketVersioning and s3:ListBucketVersions: docs/S3.md",
        )
    if versioning == "none":
        return "none are kept: whoever may overwrite can destroy (docs/S3.md)"
    name = f"{folder}/versions"
    for content in (b"first", b"second"):
        service.put(name, content)
    first = next(version for version in service.history.list(name) if not version.marker)
    if service.get(name, version=first.id) != b"first":
        raise _Wrong("the first version of an object is not told from later ones")
    return "kept: the first version of every object is what is read"


def _object_lock(service: VersionedStore, clock: Clock, lock: LockRule) -> str:
    if service.history.versioning() != "kept":
        raise _Wrong("locks need a bucket that keeps versions", LOCK_HINT)
    name = f"probe/{secrets.token_hex(8)}/locked"
    service.put(name, b"locked for a minute")
    (version,) = service.history.list(name)
    until = clock.now().replace(microsecond=0) + dt.timedelta(minutes=1)
    service.history.retain(name, version.id, lock.mode, until)
    if service.history.retained_until(name, version.id) != until:
        raise _Wrong("a lock was taken and is not told", LOCK_HINT)
    with contextlib.suppress(StoreRefused):
        service.history.delete(name, version.id)
        raise _Wrong("a locked object was deleted", LOCK_HINT)
    return f"objects can be locked ({lock.mode})"


def _delete(store: Store, folder: str) -> str:
    names = [info.name for info in store.list(f"{folder}/")]
    for name in names:
        store.delete(name)
    if any(True for _ in store.list(f"{folder}/")):
        raise _Wrong("deleted objects are still listed")
    return "objects can be deleted"
