"""A backup: capture, store, commit, and only then let the guest's overlay go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from drvm import __version__
from drvm.backup.transfer import transfer
from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import (
    CaptureError,
    DrvmError,
    Interrupted,
    ObjectMissing,
    PacksCondemned,
    RepositoryError,
)
from drvm.core.ids import new_point_id
from drvm.core.progress import Progress, Trace
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.points import ATTEMPTS, Point
from drvm.repository.repository import Repository
from drvm.repository.session import Session, Written
from drvm.snapshot.capture import (
    CaptureRequest,
    Engine,
    FrozenDisk,
    FrozenMachine,
    ParentPoint,
)
from drvm.snapshot.group import capture_group
from drvm.snapshot.parts import Parts


@dataclass(frozen=True, slots=True)
class BackupResult:
    """``cleanup`` is set where the point is good, but the guest is not yet back on its base, or was
    in trouble meanwhile."""

    point: Point
    cleanup: CaptureError | None = None


class Backup:
    """Takes points into one repository. ``writer`` names this machine in them."""

    def __init__(
        self,
        repository: Repository,
        *,
        writer: str,
        level: int,
        clock: Clock,
        progress: Progress,
        trace: Trace,
    ) -> None:
        self._repository = repository
        self._writer = writer
        self._level = level
        self._clock = clock
        self._progress = progress
        self._trace = trace

    def run(self, engine: Engine, request: CaptureRequest, vm_uuid: str) -> BackupResult:
        """Take one point.

        The repository is asked for all it must answer before the guest is touched: an
        unreachable store costs no snapshot. The source stays frozen until the final is written.
        A crash leaves uploaded packs (found again by their ids), perhaps a pending point (not
        listed), and the journal of the capture, from which recovery puts the guest back.

        Where the parent was ended meanwhile, and what it needs collected, all of it is done once
        more, without that parent.
        """
        parent = self._parent(vm_uuid)
        try:
            return self._run(engine, request, parent)
        except (ObjectMissing, RepositoryError):
            if parent is None or self._repository.current(parent) is not None:
                raise
        self._trace("parent-gone")
        self._progress.stage(f"beginning anew, as point {parent.id} was removed meanwhile")
        request = replace(request, point_id=new_point_id())
        return self._run(engine, request, self._parent(vm_uuid))

    def _run(self, engine: Engine, request: CaptureRequest, parent: Point | None) -> BackupResult:
        self._refresh()
        self._progress.stage(f"capturing {request.vm}")
        capture = engine.capture(replace(request, parent=_parent_point(parent)))
        return self._take(capture, request, parent)

    def run_group(
        self, parts: Parts, members: Sequence[tuple[CaptureRequest, str]]
    ) -> list[BackupResult | DrvmError]:
        """Take a point of each machine at one instant, in the order of ``members`` (with the
        machines' UUIDs). Raises where they can't be captured together; what goes wrong with one
        point after that stands in its place, and keeps none of the others from being taken."""
        parents = [self._parent(vm_uuid) for _, vm_uuid in members]
        self._refresh()
        requests = [
            replace(request, parent=_parent_point(parent))
            for (request, _), parent in zip(members, parents, strict=True)
        ]
        self._progress.stage(f"capturing {', '.join(request.vm for request in requests)}")
        results: list[BackupResult | DrvmError] = []
        with capture_group(parts, requests) as captured:
            for capture, request, parent in zip(captured, requests, parents, strict=True):
                try:
                    results.append(self._take(capture, request, parent))
                except Interrupted:
                    raise
                except DrvmError as error:
                    results.append(error)
        return results

    def _parent(self, vm_uuid: str) -> Point | None:
        """The newest point, if this host may build on it: a parent that lies about what is where
        would be kept unread."""
        point = self._repository.newest_point(vm_uuid, self._clock.now())
        if point is None or not self._repository.may_build_on(point.manifest):
            return None
        return point

    def _refresh(self) -> None:
        self._repository.sweep_cache(self._clock.now())
        self._repository.refresh()

    def _take(
        self,
        capture: AbstractContextManager[FrozenMachine],
        request: CaptureRequest,
        parent: Point | None,
    ) -> BackupResult:
        point: Point | None = None
        try:
            with capture as frozen:
                point = self._store(frozen, request, parent)
                self._progress.stage(f"releasing {request.vm}")
        except CaptureError as error:
            if point is None:
                raise
            return BackupResult(point, error)
        return BackupResult(point)

    def _store(self, frozen: FrozenMachine, request: CaptureRequest, parent: Point | None) -> Point:
        banned: frozenset[bytes] = frozenset()
        for attempt in range(1, ATTEMPTS + 1):
            manifest = self._write(frozen, request, parent, banned)
            self._trace("data-stored")
            self._progress.stage(f"committing {frozen.name}")
            try:
                return self._repository.commit(manifest, self._trace, own=True)
            except PacksCondemned as error:
                if attempt == ATTEMPTS:
                    raise
                banned |= error.packs
                self._repository.refresh(banned)
        raise AssertionError("unreachable")

    def _write(
        self,
        frozen: FrozenMachine,
        request: CaptureRequest,
        parent: Point | None,
        banned: frozenset[bytes],
    ) -> Manifest:
        with self._repository.session(level=self._level, banned=banned) as session:
            blobs = [
                None if data is None else session.blob(data)
                for data in (_encoded(frozen.definition_xml), frozen.nvram, *frozen.tpm.values())
            ]
            disks = [
                (disk, *self._disk(session, frozen.uuid, disk, parent)) for disk in frozen.disks
            ]
            memory = None
            if frozen.memory is not None:  # nothing of an earlier point is in the same place
                writer = session.disk(frozen.memory.size_bytes, None)
                memory = frozen.memory, writer, transfer(frozen.memory, writer, self._progress)
                self._trace("read memory")
            self._progress.stage(f"storing {frozen.name}")
            written = session.finish()
        described = _described([*disks, *([] if memory is None else [memory])], written)
        definition, nvram, *tpm = (
            None if blob is None else StoredBlob.of(written.blobs[blob]) for blob in blobs
        )
        return Manifest(
            id=request.point_id,
            vm=frozen.name,
            vm_uuid=frozen.uuid,
            created=rfc3339(frozen.taken_at),
            finished=rfc3339(self._clock.now()),
            consistency=frozen.consistency,
            engine=frozen.engine,
            host=self._writer,
            drvm_version=__version__,
            parent=parent.id if parent is not None else None,
            frozen_seconds=round(frozen.frozen_s, 3),
            stored_bytes=written.stored_bytes,
            disks=described[: len(disks)],
            memory=described[-1] if memory is not None else None,
            definition=definition,
            nvram=nvram,
            tpm={name: blob for name, blob in zip(frozen.tpm, tpm, strict=True) if blob},
            guest=dict(frozen.guest),
            warnings=frozen.warnings + self._distrusted(),
            group=request.group,
        )

    def _distrusted(self) -> tuple[str, ...]:
        liars = self._repository.trust.liars
        if not liars:
            return ()
        return (
            f"{len(liars)} packs of other hosts are not what their tables say and were left out, "
            f"such as {min(liars).hex()}: drvm check --read-data 100%",
        )

    def _disk(
        self, session: Session, vm_uuid: str, disk: FrozenDisk, parent: Point | None
    ) -> tuple[DiskWriter, int]:
        before = None
        for known in parent.manifest.disks if parent is not None else ():
            if known.target == disk.target:
                before = self._repository.disk_map(known)
        with self._repository.fingerprints(vm_uuid, disk.target) as fingerprints:
            writer = session.disk(disk.size_bytes, before, fingerprints)
            read_bytes = transfer(disk, writer, self._progress)
        self._trace(f"read {disk.target}")
        return writer, read_bytes


def _parent_point(point: Point | None) -> ParentPoint | None:
    if point is None:
        return None
    return ParentPoint(point.id, {d.target: d.size_bytes for d in point.manifest.disks})


def _encoded(text: str | None) -> bytes | None:
    return text.encode() if text is not None else None


def _described(
    disks: list[tuple[FrozenDisk, DiskWriter, int]], written: Written
) -> tuple[Disk, ...]:
    return tuple(
        Disk(
            target=disk.target,
            size_bytes=disk.size_bytes,
            format=disk.format,
            method=disk.method,
            read_bytes=read_bytes,
            new_bytes=writer.tally.new_bytes,
            stored_bytes=writer.tally.stored_bytes,
            image_options=dict(disk.image_options),
            root=StoredBlob.of(root) if root is not None else None,
        )
        for (disk, writer, read_bytes), root in zip(disks, written.roots, strict=True)
    )
