"""Points: the protocol that makes them, and the list of the good ones.

A point is good when its manifest and an ``ok`` final that names the manifest's digest are both
there. The order of a writer's steps, which a collector relies on:

1. packs are uploaded;
2. the manifest is created (never rewritten: every attempt has a generation of its own);
3. ``condemned/`` is listed completely, *then* ``packs/``: every pack that the point needs must
   be present and not condemned. From its manifest on, a collector counts these packs as needed,
   so whatever is found alive here stays alive;
4. the final is created, once. If step 3 found packs missing or condemned it says ``aborted``,
   and the writer starts anew with another generation.

A crash before 4 leaves a pending point: not listed, and harmless.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
from dataclasses import dataclass
from operator import itemgetter

import msgspec

from drvm.core.clock import parse_rfc3339
from drvm.core.errors import (
    DamageFound,
    ObjectExists,
    ObjectMissing,
    OutcomeUnknown,
    PacksCondemned,
    RepositoryError,
    StoreRefused,
)
from drvm.core.ids import new_generation
from drvm.core.progress import Trace, no_trace
from drvm.repository.crypto import Sealer
from drvm.repository.layout import (
    CONFIG,
    FINALS,
    POINTS,
    decode_json,
    final_object,
    parse_point,
    point_object,
    tombstone,
)
from drvm.repository.listings import condemned_packs, present_packs
from drvm.repository.manifest import Manifest, decode_manifest, digest
from drvm.repository.remembered import Remembered
from drvm.store.base import MAX_OBJECT_BYTES, Store

ATTEMPTS = 3
"""How often a point is written anew when a collector condemns packs that it relies on."""

_MAX_FINAL_BYTES = 16 * 1024
_CLOCKS_APART = dt.timedelta(days=1)
_NO_TIME = dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Point:
    """A good point: its manifest, and the generation that holds it."""

    manifest: Manifest
    generation: str

    @property
    def id(self) -> str:
        return self.manifest.id


@dataclass(frozen=True, slots=True)
class Listing:
    """``points``: the good ones, oldest first. ``problems``: what should be readable and is
    not, a line each; points that were never finished are no problem. ``damaged``: (VM's UUID, id,
    generation) of what has a final and can't be read."""

    points: tuple[Point, ...]
    problems: tuple[str, ...]
    damaged: tuple[tuple[str, str, str], ...] = ()


class Final(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: str
    manifest_sha256: str


def commit(
    store: Store,
    sealer: Sealer,
    manifest: Manifest,
    need: frozenset[bytes],
    trace: Trace = no_trace,
) -> Point:
    """Make a point of ``manifest``, whose packs are all uploaded. ``need`` names all of them.

    Raises ``PacksCondemned``, having aborted the generation, where a pack is absent or
    condemned; ``RepositoryError`` where somebody else decided this generation.
    """
    generation = new_generation()
    name = point_object(manifest.vm_uuid, manifest.id, generation)
    encoded = manifest.encode()
    decode_manifest(encoded, name)  # what no reader would take must not end the attempt as good
    sealed = sealer.seal_object(b"point", name, encoded)
    create_once(store, name, sealed)
    trace("manifest-created")
    condemned = condemned_packs(store)
    trace("condemned-listed")
    present = present_packs(store)
    bad = need & condemned | need - present
    trace("packs-checked")
    if bad:
        _decide(store, sealer, manifest.id, generation, "aborted", sealed)
        trace("final-aborted")
        raise PacksCondemned(
            f"{len(bad)} packs of point {manifest.id} are absent or being collected",
            packs=bad,
        )
    _decide(store, sealer, manifest.id, generation, "ok", sealed)
    trace("final-created")
    return Point(manifest, generation)


def condemn(store: Store, name: bytes) -> None:
    """Create the pack's tombstone; one that is there already serves, whatever it says."""
    with contextlib.suppress(ObjectExists):
        store.put_if_absent(tombstone(name), b"")


def check_is_there(store: Store) -> None:
    """Raises ``StoreRefused`` where ``drvm.json`` went since the repository was opened: a disk that
    was unmounted leaves an empty directory, in which points would be made, or found missing."""
    try:
        store.head(CONFIG)
    except ObjectMissing:
        raise StoreRefused(
            f"the repository at {store.location} is not there any more",
            hint="mount it again if it is on a disk of its own",
        ) from None


def list_points(
    store: Store,
    sealer: Sealer,
    vm_uuid: str | None = None,
    remembered: Remembered | None = None,
) -> Listing:
    """Read all manifests that have a final, of one VM or of all, but for those that are
    ``remembered``. Of several good generations of a point the one that was decided last: those
    before may have been damaged."""
    finals = {info.name.removeprefix(FINALS): info for info in store.list(FINALS)}
    prefix = f"{POINTS}{vm_uuid}/" if vm_uuid is not None else POINTS
    good: dict[str, Point] = {}
    decided: dict[str, dt.datetime] = {}
    problems: list[str] = []
    damaged: list[tuple[str, str, str]] = []
    names: list[str] = []
    for info in store.list(prefix):
        names.append(info.name)
        parsed = parse_point(info.name)
        final = finals.get(f"{parsed[1]}.{parsed[2]}") if parsed is not None else None
        if parsed is None or final is None:
            continue
        if max(info.size_bytes, final.size_bytes) > MAX_OBJECT_BYTES:
            problems.append(f"{info.name} or its final is larger than any object of drvm")
            damaged.append(parsed)
            continue
        try:
            if remembered is None:
                point = read_point(store, sealer, *parsed)
            else:
                read = functools.partial(read_point, store, sealer, *parsed)
                point = remembered.of((info, final), read)
        except ObjectMissing:
            continue  # deleted since the listing
        except RepositoryError as error:
            problems.append(str(error))
            damaged.append(parsed)
            continue
        if point is not None and decided.get(point.id, final.modified) <= final.modified:
            good[point.id], decided[point.id] = point, final.modified
    if remembered is not None:
        remembered.keep_only(prefix, names)
    ordered = sorted(good.values(), key=lambda point: (point.manifest.created, point.id))
    return Listing(tuple(ordered), tuple(problems), tuple(damaged))


def newest_point(store: Store, sealer: Sealer, vm_uuid: str, now: dt.datetime) -> Point | None:
    """The good point of a VM that shows its latest instant; nearly always only that one is read.

    No name tells a time, so the store's own times say in which order to look: no manifest was
    written before its instant. One that claims to be (its writer's clock had jumped) is as old as
    the store says; where the store's time is more than a day ahead of ``now``, it is believed last
    of all. A manifest that is pending, aborted or damaged is passed over.
    """
    limit = now + _CLOCKS_APART
    listed = [
        (info.modified if info.modified <= limit else _NO_TIME, info.name)
        for info in store.list(f"{POINTS}{vm_uuid}/")
        if info.size_bytes <= MAX_OBJECT_BYTES
    ]
    best: tuple[dt.datetime, str, Point] | None = None
    for stored, name in sorted(listed, reverse=True):
        if best is not None and best[0] > stored:
            break
        parsed = parse_point(name)
        try:
            point = read_point(store, sealer, *parsed) if parsed is not None else None
        except (ObjectMissing, RepositoryError):
            continue
        if point is not None:
            created = point.manifest.created
            found = (min(stored, parse_rfc3339(created)), created, point)
            best = found if best is None else max(best, found, key=itemgetter(0, 1))
    return best[2] if best is not None else None


def read_point(
    store: Store, sealer: Sealer, vm_uuid: str, point_id: str, generation: str
) -> Point | None:
    """The point, if its final says so; ``None`` for one that was aborted.

    Raises ``ObjectMissing`` and ``DamageFound``.
    """
    final = read_final(store, sealer, point_id, generation)
    if final.status != "ok":
        return None
    sha256 = final.manifest_sha256
    return Point(read_manifest(store, sealer, vm_uuid, point_id, generation, sha256), generation)


def read_manifest(
    store: Store, sealer: Sealer, vm_uuid: str, point_id: str, generation: str, sha256: str | None
) -> Manifest:
    """``sha256``: what its final names, if that says ok. Raises ``ObjectMissing``, and
    ``DamageFound`` for what is not its manifest, or not the one that its final names."""
    name = point_object(vm_uuid, point_id, generation)
    sealed = store.get(name)
    if sha256 is not None and digest(sealed) != sha256:
        raise DamageFound(f"{name} is not what its final names")
    manifest = decode_manifest(sealer.open_object(b"point", name, sealed), name)
    if (manifest.vm_uuid, manifest.id) != (vm_uuid, point_id):
        raise DamageFound(f"{name} is the manifest of another point")
    return manifest


def current_point(store: Store, sealer: Sealer, point: Point) -> Point | None:
    """The same point as it is now: in its generation, or in another good one where that is gone;
    ``None`` where it was removed."""
    uuid = point.manifest.vm_uuid
    found: Point | None = None
    for name in manifests(store, uuid, point.id):
        generation = name.rpartition(".")[2]
        if generation == point.generation:
            return point
        with contextlib.suppress(ObjectMissing, RepositoryError):
            found = read_point(store, sealer, uuid, point.id, generation) or found
    return found


def final_times(store: Store) -> dict[str, tuple[dt.datetime, ...]]:
    """Point id -> when its generations were decided, good or not, by the store's time."""
    times: dict[str, tuple[dt.datetime, ...]] = {}
    for info in store.list(FINALS):
        point_id = info.name.removeprefix(FINALS).partition(".")[0]
        times[point_id] = (*times.get(point_id, ()), info.modified)
    return times


def manifests(store: Store, vm_uuid: str, point_id: str) -> list[str]:
    """The objects of all generations of a point, whatever became of them."""
    names = [info.name for info in store.list(point_object(vm_uuid, point_id, ""))]
    return [name for name in names if parse_point(name) is not None]


def was_ended(store: Store, sealer: Sealer, vm_uuid: str, point_id: str) -> bool:
    """Whether the point was good here once, and somebody removed it, as far as finals tell."""
    if manifests(store, vm_uuid, point_id):
        return False
    prefix = final_object(point_id, "")
    for info in store.list(prefix):
        with contextlib.suppress(ObjectMissing, RepositoryError):
            generation = info.name.removeprefix(prefix)
            if read_final(store, sealer, point_id, generation).status == "ok":
                return True
    return False


def end_point(store: Store, vm_uuid: str, point_id: str, trace: Trace = no_trace) -> int:
    """Delete the manifests of all generations, whatever became of them; how many there were.

    The delete of a manifest ends its generation: what a collector does with the packs comes after.
    Finals stay; without a manifest they say nothing. A crash leaves the point good by a generation
    that is still there, or ended.
    """
    names = manifests(store, vm_uuid, point_id)
    trace("manifests-listed")
    for name in names:
        store.delete(name)
        trace("manifest-deleted")
    return len(names)


def create_once(store: Store, name: str, data: bytes) -> None:
    """Create an object that holds fresh randomness, such as anything sealed.

    A lost answer is settled by reading back: the bytes tell whose they are. Raises
    ``ObjectExists`` where they are somebody else's.
    """
    try:
        store.put_if_absent(name, data)
    except (ObjectExists, OutcomeUnknown):
        try:
            stored = store.get(name)
        except ObjectMissing:
            raise OutcomeUnknown(f"it is not known whether {name} was created") from None
        if stored != data:
            raise ObjectExists(f"{name} was created by somebody else") from None


def _decide(
    store: Store, sealer: Sealer, point_id: str, generation: str, status: str, manifest: bytes
) -> None:
    name = final_object(point_id, generation)
    final = Final(status, hashlib.sha256(manifest).hexdigest())
    try:
        create_once(store, name, sealer.seal_object(b"final", name, msgspec.json.encode(final)))
    except ObjectExists:
        if status == "aborted":
            return  # whoever decided, it can only have been the same
        raise RepositoryError(
            f"point {point_id} was given up by a collector while it was being written",
            hint="the backup took longer than the collector's grace: run it again",
        ) from None


def read_final(store: Store, sealer: Sealer, point_id: str, generation: str) -> Final:
    """Raises ``ObjectMissing`` where nobody decided yet, and ``DamageFound``."""
    name = final_object(point_id, generation)
    plain = sealer.open_object(b"final", name, store.get_tail(name, _MAX_FINAL_BYTES))
    return decode_json(plain, Final, name)
