"""What a check says of the small objects of a repository: by their names, and by opening them."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from drvm.core.errors import ObjectMissing, RepositoryError
from drvm.repository.checks import Arc
from drvm.repository.layout import (
    DRILLS,
    FINALS,
    INDEX,
    PINS,
    POINTS,
    final_object,
    parse_pin,
    parse_point,
)
from drvm.repository.repository import Repository
from drvm.store.base import MAX_OBJECT_BYTES, Store

COMMITTING = dt.timedelta(hours=1)
"""A writer decides its manifest within minutes: it lists two prefixes in between."""


@dataclass(frozen=True, slots=True)
class Finds:
    """A line each. ``damage``: of what the repository needs, beside packs and points.
    ``harmless``: damaged objects without which every point can be restored. ``unfinished``:
    manifests without a final: being written, left by a writer that died, or good points whose
    final was lost."""

    damage: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()


def look_at_names(store: Store, now: dt.datetime) -> Finds:
    """Which manifests, finals and pins don't belong together. Finals without a manifest are of
    points that were removed. Needs no key."""
    manifests = {info.name: info.modified for info in store.list(POINTS)}
    finals = {info.name for info in store.list(FINALS)}
    ids: set[str] = set()
    unfinished = []
    for name, stored in manifests.items():
        parsed = parse_point(name)
        if parsed is None:
            continue
        ids.add(parsed[1])
        if final_object(parsed[1], parsed[2]) not in finals and now - stored > COMMITTING:
            unfinished.append(f"{name} has no final: never finished, or its final is lost")
    pinned = sorted({point for i in store.list(PINS) if (point := parse_pin(i.name)) is not None})
    damage = tuple(
        f"point {point_id} is pinned, and no manifest of it is there"
        for point_id in pinned
        if point_id not in ids
    )
    return Finds(damage, (), tuple(unfinished))


def look_at_objects(repository: Repository, arc: Arc, finds: Finds) -> Finds:
    """The same with what opening objects of ``arc`` shows: by the hashes of their names."""
    harmless = list(finds.harmless)
    harmless += [f"{name} can't be read" for name in repository.checks.unreadable_slots()]
    if arc.length:
        harmless += [f"{name} can't be read" for name in repository.checks.history().unreadable]
        for purpose, prefix in ((b"index", INDEX), (b"drill", DRILLS), (b"pin", PINS)):
            harmless += _unreadable(repository, purpose, prefix, arc)
    return replace(finds, harmless=tuple(harmless))


def _unreadable(repository: Repository, purpose: bytes, prefix: str, arc: Arc) -> Iterator[str]:
    for info in repository.store.list(prefix):
        if hashlib.sha256(info.name.encode()).digest() not in arc:
            continue
        if info.size_bytes > MAX_OBJECT_BYTES:
            yield f"{info.name} is larger than any object of drvm"
            continue
        try:
            repository.checks.open(purpose, info.name)
        except ObjectMissing:
            continue  # removed since the listing
        except RepositoryError as error:
            yield error.message
