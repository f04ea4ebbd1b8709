"""Points as a collector sees them: all generations, also those that were never finished.

``list_points`` does not serve a collector: it looks at finals first, and only at good points. Here
``points/`` is listed, and each final is looked for behind that.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import Enum

import msgspec

from drvm.core.errors import DamageFound, ObjectExists, ObjectMissing
from drvm.core.progress import Trace, no_trace
from drvm.repository.crypto import Sealer
from drvm.repository.layout import POINTS, final_object, parse_point, point_object
from drvm.repository.manifest import Manifest
from drvm.repository.need import Look, Need
from drvm.repository.packs import BlobRef, PackReader
from drvm.repository.points import Final, create_once, read_final, read_manifest
from drvm.store.base import MAX_OBJECT_BYTES, Store

_NO_MANIFEST = "0" * 64
"""In a final that gives a generation up, whatever its manifest says."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt at a point, as it is listed. ``stored``: when its manifest was, by the store's
    time."""

    vm_uuid: str
    point_id: str
    generation: str
    stored: dt.datetime
    size_bytes: int

    @property
    def name(self) -> str:
        return point_object(self.vm_uuid, self.point_id, self.generation)


class Status(Enum):
    """What a generation's final says. ``UNREADABLE``: there is one, and nobody can tell what it
    says; it can't be good, but what it needs counts."""

    OK = "ok"
    PENDING = "pending"
    ABORTED = "aborted"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Decided:
    """``manifest_sha256``: what an ``ok`` final names; else empty."""

    status: Status
    manifest_sha256: str = ""


class Generations:
    """All of a repository. Safe for several threads."""

    def __init__(self, store: Store, sealer: Sealer, packs: PackReader) -> None:
        self._store = store
        self._sealer = sealer
        self._packs = packs

    def listed(self) -> list[Generation]:
        """All manifests there are. Complete, or an error."""
        return self._listed(POINTS)

    def of(self, vm_uuid: str, point_id: str) -> list[Generation]:
        """All manifests of a point. Complete, or an error."""
        return self._listed(point_object(vm_uuid, point_id, ""))

    def end(self, generation: Generation, trace: Trace = no_trace) -> None:
        """Delete its manifest: whatever it was, it is no point any more. The caller has made sure
        that it is older than any request lives (docs/adr/027-collection.md)."""
        self._store.delete(generation.name)
        trace("manifest-deleted")

    def _listed(self, prefix: str) -> list[Generation]:
        found = []
        for info in self._store.list(prefix):
            parsed = parse_point(info.name)
            if parsed is not None:
                found.append(Generation(*parsed, info.modified, info.size_bytes))
        return found

    def decided(self, generation: Generation) -> Decided:
        """Finals are never changed: only ``PENDING`` may be outdated when this returns."""
        try:
            final = read_final(
                self._store, self._sealer, generation.point_id, generation.generation
            )
        except ObjectMissing:
            return Decided(Status.PENDING)
        except DamageFound:
            return Decided(Status.UNREADABLE)
        if final.status == "ok":
            return Decided(Status.OK, final.manifest_sha256)
        return Decided(Status.ABORTED if final.status == "aborted" else Status.UNREADABLE)

    def manifest(self, generation: Generation, manifest_sha256: str = "") -> Manifest:
        """Raises ``ObjectMissing`` where the generation was ended since, and ``DamageFound`` for
        what is not its manifest, or not the one that its final names."""
        if generation.size_bytes > MAX_OBJECT_BYTES:
            raise DamageFound(f"{generation.name} is larger than any object of drvm")
        named = (generation.vm_uuid, generation.point_id, generation.generation)
        return read_manifest(self._store, self._sealer, *named, manifest_sha256 or None)

    def need(self, look: Look = lambda node: None) -> Need:
        """To be given manifests; ``look`` sees each level-1 node once."""

        def again(ref: BlobRef) -> bytes:
            return PackReader(self._store, self._sealer).blob(ref)

        return Need(self._packs.blob, again, look)

    def give_up(self, generation: Generation, trace: Trace = no_trace) -> bool:
        """Decide for a writer that died: its generation will never be good. Whether this won;
        else the writer, or another collector, was there first. A crash leaves it decided, or
        pending."""
        name = final_object(generation.point_id, generation.generation)
        final = msgspec.json.encode(Final("aborted", _NO_MANIFEST))
        try:
            create_once(self._store, name, self._sealer.seal_object(b"final", name, final))
        except ObjectExists:
            return False
        trace("generation-given-up")
        return True
